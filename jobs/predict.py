"""Predict labelled photographs on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.predict ...`.

The same verb, options and exit codes as `qualitygate predict`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used.
"""

import sys

from qualitygate.cli import run

if __name__ == "__main__":
    run(["predict", *sys.argv[1:]])
