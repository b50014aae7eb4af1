"""`python -m apps.masking parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.masking.stage import STAGE

sys.exit(stage_main(STAGE))
