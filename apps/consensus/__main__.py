"""`python -m apps.consensus parameters.json`."""

import sys

from apps.consensus.stage import STAGE
from apps.core.stage import stage_main

sys.exit(stage_main(STAGE))
