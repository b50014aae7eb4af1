"""`python -m apps.trial parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.trial.stage import STAGE

sys.exit(stage_main(STAGE))
