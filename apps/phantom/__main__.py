"""`python -m apps.phantom parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.phantom.stage import STAGE

sys.exit(stage_main(STAGE))
