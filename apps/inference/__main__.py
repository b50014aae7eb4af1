"""`python -m apps.inference parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.inference.stage import STAGE

sys.exit(stage_main(STAGE))
