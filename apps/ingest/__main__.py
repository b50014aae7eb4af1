"""`python -m apps.ingest parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.ingest.stage import STAGE

sys.exit(stage_main(STAGE))
