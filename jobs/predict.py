"""Predict labelled photographs on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.predict ...`.

The same verb, options and exit codes as `qualitygate predict`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used.
"""

import sys

from qualitygate.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
