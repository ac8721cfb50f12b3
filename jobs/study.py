"""A training study on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.study --manifest ... ...`.

The same verb, options and exit codes as `qualitygate study`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used. Submitted again, it trains what is missing.
"""

import sys

from qualitygate.cli import run

if __name__ == "__main__":
    run(["study", *sys.argv[1:]])
