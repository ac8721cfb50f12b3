"""Train the baseline on a Ray cluster: `ray job submit --working-dir . -- python -m jobs.train_baseline ...`.

The same verb, options and exit codes as `qualitygate train-baseline`; RAY_ADDRESS, which the submission sets, decides
that the cluster is used.
"""

import sys

from qualitygate.cli import run

if __name__ == "__main__":
    run(["train-baseline", *sys.argv[1:]])
