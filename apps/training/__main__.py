"""`python -m apps.training parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.training.stage import STAGE

sys.exit(stage_main(STAGE))
