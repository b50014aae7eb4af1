"""`python -m apps.multiscale parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.multiscale.stage import STAGE

sys.exit(stage_main(STAGE))
