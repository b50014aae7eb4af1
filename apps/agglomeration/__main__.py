"""`python -m apps.agglomeration parameters.json`."""

import sys

from apps.agglomeration.stage import STAGE
from apps.core.stage import stage_main

sys.exit(stage_main(STAGE))
