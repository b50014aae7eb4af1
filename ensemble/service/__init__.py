"""The embedded Balsam service: PostgreSQL and the Balsam API server, on this machine, for this user only.

Everything it keeps lies in one folder, the home.  `start`, `stop` and `status` act on a home; `environment` and
`connect` point the stock `balsam` command, or this process, at the service that runs there.
"""

from ensemble.service.connection import connect, environment
from ensemble.service.lifecycle import ServiceInfo, ServiceStatus, start, status, stop
from ensemble.service.state import Phase

__all__ = ["Phase", "ServiceInfo", "ServiceStatus", "connect", "environment", "start", "status", "stop"]
