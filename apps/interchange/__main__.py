"""`python -m apps.interchange parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.interchange.stage import STAGE

sys.exit(stage_main(STAGE))
