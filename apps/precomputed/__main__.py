"""`python -m apps.precomputed parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.precomputed.stage import STAGE

sys.exit(stage_main(STAGE))
