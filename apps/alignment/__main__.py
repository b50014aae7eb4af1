"""`python -m apps.alignment parameters.json`."""

import sys

from apps.alignment.stage import STAGE
from apps.core.stage import stage_main

if __name__ == "__main__":  # worker processes import this module again
    sys.exit(stage_main(STAGE))
