"""`python -m apps.simulation parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.simulation.stage import STAGE

sys.exit(stage_main(STAGE))
