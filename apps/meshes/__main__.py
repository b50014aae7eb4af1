"""`python -m apps.meshes parameters.json`."""

import sys

from apps.core.stage import stage_main
from apps.meshes.stage import STAGE

sys.exit(stage_main(STAGE))
