"""`python -m apps.partition parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.partition.stage import STAGE

sys.exit(stage_main(STAGE))
