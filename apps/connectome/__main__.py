"""`python -m apps.connectome parameters.json`."""

import sys

from apps.connectome.stage import STAGE
from apps.core.stage import stage_main

sys.exit(stage_main(STAGE))
