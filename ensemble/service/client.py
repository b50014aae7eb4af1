"""The client class that `client.yml` names: Balsam's own, with errors at once where repeating cannot help."""

from __future__ import annotations

import logging
import random
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
from balsam.client import BasicAuthRequestsClient, RequestsClient

from apps.core.errors import ParameterError, StateError, TransientError

logger = logging.getLogger(__name__)

# A server that is being restarted is back within seconds; agents and launchers sit that out.
PATIENCE_S = 30.0
LONGEST_PAUSE_S = 2.0


class ServiceClient(BasicAuthRequestsClient):
    """Balsam's client for the embedded service.

    Balsam repeats every refused request ten times with doubling pauses, about half an hour in all.  Here a refused
    token raises StateError and a request that the server understands but rejects raises ParameterError, both at once.
    Lost connections and failures of the server are repeated for `PATIENCE_S` seconds and then raise TransientError.
    """

    def __init__(
        self, api_root: str, token: str | None = None, token_expiry: datetime | None = None, **rest: Any
    ) -> None:
        super().__init__(api_root, token=token, token_expiry=token_expiry, **rest)
        self._first_failure: float | None = None

    def request(self, url: str, http_method: str, *args: Any, **kwargs: Any) -> Any:
        self._first_failure = None
        return super().request(url, http_method, *args, **kwargs)

    def backoff(self, reason: Exception) -> None:
        """Called by Balsam after every failed attempt: pause, or raise."""
        response = getattr(reason, "response", None)
        if isinstance(reason, requests.HTTPError) and response is not None and response.status_code < 500:
            raise _refusal(self.api_root, response) from reason
        now = time.monotonic()
        self._first_failure = self._first_failure or now
        if now - self._first_failure > PATIENCE_S:
            raise TransientError(
                f"the Balsam server at {self.api_root} does not answer ({reason}); "
                "`ensemble service status` tells more, `ensemble service start` starts it"
            ) from reason
        time.sleep(min(LONGEST_PAUSE_S, 0.1 * 2**self._attempt) * random.uniform(0.5, 1.0))
        self._attempt += 1


def _refusal(api_root: str, response: requests.Response) -> Exception:
    if response.status_code in (401, 403):
        return StateError(
            f"the Balsam server at {api_root} refuses the token; `ensemble service start` writes a new one, "
            "and `eval $(ensemble service env)` points the balsam command at it"
        )
    return ParameterError(f"the Balsam server refuses the request: {response.status_code} {response.text[:500]}")


def open_client(client_file: Path) -> RequestsClient:
    """A client for the address and token in `client_file`, whatever the environment says."""
    import yaml
    from balsam.config import ClientSettings

    return ClientSettings(**yaml.safe_load(client_file.read_text())).build_client()
