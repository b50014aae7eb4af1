"""The process of the Balsam API server: `python -m ensemble.service.serve HOME SOCKET_NUMBER`."""

from __future__ import annotations

import argparse
import json
import os
import socket
from datetime import datetime
from pathlib import Path

from apps.core.files import write_atomically
from ensemble.service.postgres import Postgres
from ensemble.service.state import Home

TOKEN_LIFE_S = 366 * 24 * 3600


def write_client_file(home: Home, port: int, token: str, expiry: datetime) -> None:
    """Write address and token where `BALSAM_CLIENT_PATH` points, readable by the owner only."""
    import yaml

    content = {
        "api_root": f"http://127.0.0.1:{port}",
        "client_class": "ensemble.service.client.ServiceClient",
        "token": token,
        "token_expiry": expiry,
        "connect_timeout": 5.0,
        "read_timeout": 120.0,
        "retry_count": 10,
    }
    write_atomically(home.client_file, yaml.safe_dump(content, sort_keys=False).encode(), mode=0o600)


def serve(home: Home, listener: socket.socket) -> None:
    """Configure Balsam's server for this home and serve until SIGTERM."""
    secrets, postgres = home.load_secrets(), Postgres(home)
    with postgres.address() as address:
        os.environ.update(
            BALSAM_DATABASE_URL=(
                f"postgresql://{postgres.login['user']}:{secrets.database_password}@/"
                f"{postgres.login['dbname']}?host={address}"
            ),
            BALSAM_AUTH_SECRET_KEY=secrets.token_key,
            BALSAM_AUTH_TOKEN_TTL=str(TOKEN_LIFE_S),
            BALSAM_AUTH_LOGIN_METHODS="[]",
            BALSAM_LOG_LEVEL="WARNING",
            # Never an unrelated Redis that listens on Balsam's default address.
            BALSAM_REDIS_PARAMS=json.dumps({"unix_socket_path": str(home.run_folder / "redis.sock")}),
        )
        import uvicorn
        from balsam.server.main import app

        from ensemble.service import schema

        schema.prepare()
        token, expiry = schema.token_of_owner()
        configuration = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="off"
        )
        write_client_file(home, listener.getsockname()[1], token, expiry)
        uvicorn.Server(configuration).run(sockets=[listener])


def main() -> None:
    """Entry of the server process: `python -m ensemble.service.serve HOME SOCKET_NUMBER`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("socket_number", type=int)
    options = parser.parse_args()
    os.umask(0o077)
    serve(Home(options.home), socket.socket(fileno=options.socket_number))


if __name__ == "__main__":
    main()
