"""Score images on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.score --input ... --output ...`.

The same verb, options and exit codes as `qualitygate score`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used.
"""

import sys

from qualitygate.cli import run

if __name__ == "__main__":
    run(["score", *sys.argv[1:]])
