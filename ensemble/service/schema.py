"""Tables, owner and token of the Balsam database; runs inside the server process, where Balsam is configured."""

from __future__ import annotations

from datetime import datetime
from typing import Any

OWNER = "ensemble"

# What Balsam's migrations (missing from its wheel) would add to the tables of its models; and one index more, without
# which asking what has changed lately (ensemble.polling) reads all jobs that ever ended: 0.3 s where there are 60,000.
INDEXES = (
    "ix_jobs_tags ON jobs USING gin (tags jsonb_path_ops)",
    "ix_log_events_job_id ON log_events (job_id)",
    "ix_transfer_items_job_id ON transfer_items (job_id)",
    "ix_job_parent_ids ON jobs USING gin (parent_ids)",
    "jobs_app_id_fkey ON jobs (app_id)",
    "ix_jobs_last_update ON jobs (last_update)",
)


def prepare() -> None:
    """Create tables and indexes where they are missing, all in one transaction."""
    import sqlalchemy
    from balsam.server.models import Base, get_engine

    # The models define this index twice under one name; ours replaces both.
    jobs = Base.metadata.tables["jobs"]
    jobs.indexes = {index for index in jobs.indexes if index.name != "ix_jobs_tags"}
    with get_engine().begin() as connection:
        Base.metadata.create_all(connection)
        for index in INDEXES:
            connection.execute(sqlalchemy.text(f"CREATE INDEX IF NOT EXISTS {index}"))


def token_of_owner() -> tuple[str, datetime]:
    """A new token of the one user of this service (made where missing), and when it expires (UTC)."""
    from balsam.server.auth.token import create_access_token
    from balsam.server.models import get_session
    from balsam.server.models.crud import users

    session: Any = get_session()
    try:
        if not users.user_exists(session, OWNER):
            users.create_user(session, OWNER, None)
            session.commit()
        token, expiry = create_access_token(users.get_user_by_username(session, OWNER))
    finally:
        session.close()
    return str(token), expiry
