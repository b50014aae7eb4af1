"""`python -m apps.reconciliation parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.reconciliation.stage import STAGE

sys.exit(stage_main(STAGE))
