"""`python -m apps.montage parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.montage.stage import STAGE

if __name__ == "__main__":  # the stage's own worker processes import this file too
    sys.exit(stage_main(STAGE))
