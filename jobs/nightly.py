"""The nightly job on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.nightly --config F`.

The same verb, options and exit codes as `qualitygate nightly`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used. Submitted again, it goes on where it was.
"""

import sys

from qualitygate.cli import run

if __name__ == "__main__":
    run(["nightly", *sys.argv[1:]])
