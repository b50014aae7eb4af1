"""`python -m apps.audit parameters.json`."""

import sys

from apps.audit.stage import STAGE
from apps.core.stage import stage_main

if __name__ == "__main__":  # the stage's own worker processes import this file too
    sys.exit(stage_main(STAGE))
