"""The ranks of one data-parallel training: what they tell each other, over Horovod, or nothing where there is one.

Synchronous data parallelism (Dong et al., arXiv 1905.06236): every rank holds the whole network and a share of the
batch, and the gradients are averaged over the ranks at every step, so that the weights stay equal.  A training is
written once, against `Ranks`; `mpiexec -n N` or `horovodrun -np N` decides how many there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import ParameterError, TransientError
from apps.core.ranks import Launch, read_launch


class Ranks(Protocol):
    """The ranks of a run, seen from one of them.

    All but `rank`, `size` and `average` are called on the host, outside `tf.function`.  Each is a collective: every
    rank calls it, in the same order, and none returns before all have called.  Where another rank has ended they raise
    TransientError; for what runs `average` there is `lost_ranks`.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        """Mean over the ranks of each TensorFlow tensor, in float32.  To be called inside a `tf.function`, once."""

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over the ranks of an array of the same shape on all, bitwise the same on all.  For small arrays."""

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Give the Keras variables (the same list on every rank) the values that they have on rank 0."""

    def agree(self, what: str, value: str) -> None:
        """Raise ParameterError on every rank, naming those whose `value` is not rank 0's, where there are any."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""


class OneRank:
    """A run of a single process: every collective is the identity."""

    rank = 0
    size = 1

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        return list(gradients)

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.copy()

    def broadcast(self, variables: Sequence[Any]) -> None:
        pass

    def agree(self, what: str, value: str) -> None:
        pass

    def barrier(self) -> None:
        pass


def one_rank() -> Ranks:
    """The ranks of a run of a single process."""
    return OneRank()


def start_ranks(threads: int) -> Ranks:
    """The ranks of this run, as its launcher says; call it before TensorFlow runs anything.

    `threads` is what `start_backend` takes: with several ranks TensorFlow is started here, with its GPUs dealt out to
    the ranks of a node.  Without a launcher, or with a single rank, neither Horovod nor TensorFlow is imported.

    Raises ParameterError where several ranks were started and Horovod is not installed, does not load, or finds
    another number of ranks than the launcher's variables say (a launcher of another MPI than Horovod's).
    """
    launch = read_launch()
    return one_rank() if launch.size == 1 else HorovodRanks(launch, threads)


@contextlib.contextmanager
def lost_ranks() -> Iterator[None]:
    """Raise TransientError where Horovod says in the block that it cannot reach another rank: that one has ended.

    The launcher is about to end this one too, and the other may have said why; where the machine killed it, nobody
    else can, and the training goes on from its checkpoint when it is run again.
    """
    try:
        yield
    except Exception as error:
        # TensorFlow's UnknownError, with Horovod's words.  The type alone says too little, and is not there to import
        # where nothing uses TensorFlow.
        if type(error).__module__.startswith("tensorflow") and "Horovod" in str(error):
            raise TransientError(f"another rank has ended, and this one with it ({_first_line(error)})") from error
        raise


class HorovodRanks:
    """Several ranks, over Horovod 0.28 for TensorFlow."""

    def __init__(self, launch: Launch, threads: int) -> None:
        # First: without it there is no need to wait for TensorFlow.
        _check_horovod_is_there(launch)
        from apps.ffn.backend import start_tensorflow

        self._tf = start_tensorflow(threads)
        try:
            import horovod.tensorflow as hvd

            hvd.init()
        except Exception as error:  # of the dynamic linker, of TensorFlow's loader, of MPI
            raise ParameterError(
                f"{launch.launcher} started {launch.size} ranks, and Horovod does not start ({_first_line(error)}); "
                "build it anew for this environment (`make horovod`)"
            ) from error
        if (hvd.rank(), hvd.size()) != (launch.rank, launch.size):
            raise ParameterError(
                f"{launch.launcher} says rank {launch.rank} of {launch.size}, Horovod finds rank {hvd.rank()} of "
                f"{hvd.size()}: it was built against another MPI; use the mpiexec of this environment"
            )
        self._hvd = hvd
        gpus = self._tf.config.list_physical_devices("GPU")
        if gpus:
            self._tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")

    @property
    def rank(self) -> int:
        return int(self._hvd.rank())

    @property
    def size(self) -> int:
        return int(self._hvd.size())

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        # Horovod cannot reduce bfloat16, and a sum over ranks wants the precision anyway.
        tensors = [self._tf.cast(gradient, self._tf.float32) for gradient in gradients]
        return list(self._hvd.grouped_allreduce(tensors, op=self._hvd.Average, name="gradients"))

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        # Gathered and then summed in the order of the ranks: an allreduce may sum in any order.
        every = self._gather(np.asarray(values, np.float64), "total")
        return np.asarray(every.sum(axis=0))

    def broadcast(self, variables: Sequence[Any]) -> None:
        # Horovod takes TensorFlow's variables; those of Keras 3 are wrappers around them.
        with lost_ranks():
            self._hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def agree(self, what: str, value: str) -> None:
        digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
        every = self._gather(digest, "agree")
        others = np.flatnonzero((every != every[0]).any(axis=1))
        if others.size:
            raise ParameterError(
                f"{what}: not the same on all {self.size} ranks, rank{'s' if others.size > 1 else ''} "
                f"{', '.join(map(str, others))} differ{'' if others.size > 1 else 's'} from rank 0; "
                "start every rank with the same parameters, files and code"
            )

    def barrier(self) -> None:
        self._gather(np.zeros(1, np.uint8), "barrier")

    def _gather(self, values: NDArray[Any], name: str) -> NDArray[Any]:
        """[rank, ...]: every rank's `values`."""
        with lost_ranks():
            return np.asarray(self._hvd.allgather(self._tf.constant(values[None]), name=name).numpy())


def _check_horovod_is_there(launch: Launch) -> None:
    if importlib.util.find_spec("horovod") is None:
        raise ParameterError(
            f"{launch.launcher} started {launch.size} ranks, and several ranks need Horovod, which is not installed; "
            "install it (`make horovod`), or run one rank"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
