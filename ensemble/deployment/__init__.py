"""Deploy a model: segment a box of any size in overlapping subvolumes, put them together, score the result.

plan = plan_deployment(deployment, resources)     # sizes, jobs, cost; nothing is started
records = run_plan(plan, deployment, jobs, display, resources)
verify_deployment(output, report)                 # every write box against its checksum
"""

from ensemble.deployment.linking import LinkChoices
from ensemble.deployment.plan import DeploymentPlan, plan_deployment
from ensemble.deployment.records import KeptOut, Records, kept_out
from ensemble.deployment.request import Deployment, Resources, deployment_of
from ensemble.deployment.run import run_deployment, run_plan, verify_deployment

__all__ = [
    "Deployment",
    "DeploymentPlan",
    "KeptOut",
    "LinkChoices",
    "Records",
    "Resources",
    "deployment_of",
    "kept_out",
    "plan_deployment",
    "run_deployment",
    "run_plan",
    "verify_deployment",
]
