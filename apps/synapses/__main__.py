"""`python -m apps.synapses parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.synapses.stage import STAGE

sys.exit(stage_main(STAGE))
