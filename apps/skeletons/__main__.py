"""`python -m apps.skeletons parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.skeletons.stage import STAGE

sys.exit(stage_main(STAGE))
