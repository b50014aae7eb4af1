"""`python -m apps.evaluation parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.evaluation.stage import STAGE

sys.exit(stage_main(STAGE))
