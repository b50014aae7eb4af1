"""The one hierarchy of errors, and the failure kinds under which they are recorded.

An error says what was wrong, what was expected and what to do, in one sentence.  Only an edge (the `ensemble`
command, a stage's main) turns an error into a message and an exit code; everything else raises or lets pass.
"""

from __future__ import annotations

import enum
import errno

# What a full disk, a quota, or a limit on a file's size is told by.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FailureKind(enum.StrEnum):
    """Why a job did not give a result; the name that run records, `F_` objectives and `failure.json` carry.

    BAD_CONFIGURATION: the parameters or the data they name cannot work; repeating it gives the same answer.
    DIVERGED: training ran and its loss became NaN or grew without bound; an observation, never retried.
    HUNG: it ran beyond the time limit that it was given and was ended; it would again, so it is never retried.
    NO_ROOM: the disk, or the quota on it, was full; repeating it at once gives the same answer, for others as well.
    LOST_NODE, WALLTIME, KILLED: the machine ended the process; a retry from the checkpoint can succeed.
    BUG: an error of ours; never retried silently.
    """

    BAD_CONFIGURATION = "bad_configuration"
    DIVERGED = "diverged"
    HUNG = "hung"
    NO_ROOM = "no_room"
    LOST_NODE = "lost_node"
    WALLTIME = "walltime"
    KILLED = "killed"
    BUG = "bug"

    @property
    def transient(self) -> bool:
        """True where the same job, run again from its checkpoint, can succeed."""
        return self in (FailureKind.LOST_NODE, FailureKind.WALLTIME, FailureKind.KILLED)


class EnsembleError(Exception):
    """Base of all errors that this project raises on purpose."""

    kind = FailureKind.BUG
    exit_code = 1


class UserError(EnsembleError):
    """Something the user gave cannot work; the message names it."""

    kind = FailureKind.BAD_CONFIGURATION
    exit_code = 2


class ParameterError(UserError):
    """A parameter is unknown, missing, of the wrong type or outside its range."""


class DataError(UserError):
    """A file or volume is missing, unreadable, or of the wrong shape, dtype or content."""


class StateError(UserError):
    """The request does not fit the state of a service, site, campaign or model (not there, already there, in use)."""


class NoRoomError(UserError):
    """A disk, or the quota on it, is full."""

    kind = FailureKind.NO_ROOM
    exit_code = 74  # EX_IOERR; all that is told where no failure.json can be written either


class DivergedError(EnsembleError):
    """Training diverged: NaN or an exploding loss."""

    kind = FailureKind.DIVERGED
    exit_code = 3


class HungError(EnsembleError):
    """The work took longer than its time limit, and was ended."""

    kind = FailureKind.HUNG
    exit_code = 124


class TransientError(EnsembleError):
    """The machine failed in a way that may not happen again (a lost connection, a lost node)."""

    kind = FailureKind.LOST_NODE
    exit_code = 75


EXIT_CODE_OF_INTERRUPT = 130


def kind_of(error: BaseException) -> FailureKind:
    """What kind of failure an error is: what is no error of ours is a bug, but a full disk is one in any clothes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return FailureKind.NO_ROOM
        cause = cause.__cause__
    return error.kind if isinstance(error, EnsembleError) else FailureKind.BUG
