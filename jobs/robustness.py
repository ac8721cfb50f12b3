"""Measure metrics' robustness on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.robustness ...`.

The same verb, options and exit codes as `qualitygate robustness`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used.
"""

import sys

from qualitygate.cli import run

if __name__ == "__main__":
    run(["robustness", *sys.argv[1:]])
