"""The quick book of nodes keeps what Balsam's own keeps."""

from __future__ import annotations

import itertools
import random

import pytest

pytest.importorskip("balsam")

from balsam.platform.compute_node import ComputeNode
from balsam.site.launcher.node_manager import InsufficientResources, NodeManager

from ensemble.node_manager import QuickNodeManager


def nodes(count: int) -> list[ComputeNode]:
    return [ComputeNode(str(i), f"host{i}", gpu_ids=["0", "1"]) for i in range(count)]


def ask(manager: NodeManager, job: int, num_nodes: int, packing: int, gpus: float) -> int:
    """How many nodes the job was given; 0 where there was no room."""
    try:
        spec = manager.assign_from_params(job, num_nodes, 1, 0, 1, gpus, 1.0 / packing)
    except InsufficientResources:
        return 0
    assert len(spec.node_ids) == len(set(spec.node_ids)) == len(spec.hostnames)
    return len(spec.node_ids)


@pytest.mark.parametrize("allow_packing", [True, False])
def test_same_books_as_balsams_whatever_comes(allow_packing: bool) -> None:
    class WithoutCpus(ComputeNode):
        def check_fit(self, num_cpus: int, num_gpus: int, occupancy: float) -> bool:
            return super().check_fit(0, num_gpus, occupancy)

    made = [[WithoutCpus(str(i), f"host{i}", gpu_ids=["0", "1"]) for i in range(12)] for _ in range(2)]
    quick, slow = QuickNodeManager(made[0], allow_packing), NodeManager(made[1], allow_packing)
    rng = random.Random(3)
    running: list[int] = []
    for job in range(600):
        if running and rng.random() < 0.45:
            done = running.pop(rng.randrange(len(running)))
            quick.free(done)
            slow.free(done)
        else:
            # Jobs that share a node come alone: which of the shared nodes they are put on may differ.
            num_nodes, packing = rng.choice([(1, 1), (1, 1), (3, 1), (5, 1)])
            gpus = rng.choice([0, 1, 2]) if num_nodes == 1 else 0
            given = ask(quick, job, num_nodes, packing, gpus)
            assert given == ask(slow, job, num_nodes, packing, gpus)
            if given:
                running.append(job)
        assert quick.count_empty_nodes() == slow.count_empty_nodes()
        assert quick.aggregate_free_nodes() == pytest.approx(slow.aggregate_free_nodes())


def test_jobs_that_share_a_node_fill_it_before_the_next() -> None:
    class WithoutCpus(ComputeNode):
        def check_fit(self, num_cpus: int, num_gpus: int, occupancy: float) -> bool:
            return super().check_fit(0, num_gpus, occupancy)

    manager = QuickNodeManager([WithoutCpus(str(i), "host", gpu_ids=["0", "1"]) for i in range(2)])
    given = [manager.assign_from_params(job, 1, 1, 0, 1, 1, 0.5) for job in range(4)]
    assert [spec.node_ids for spec in given] == [["0"], ["0"], ["1"], ["1"]]
    assert [spec.gpu_ids for spec in given] == [[["0"]], [["1"]], [["0"]], [["1"]]]
    assert manager.aggregate_free_nodes() == 0
    with pytest.raises(InsufficientResources):
        manager.assign_from_params(4, 1, 1, 0, 1, 1, 0.5)
    manager.free(1)
    assert manager.count_empty_nodes() == 0
    assert manager.aggregate_free_nodes() == pytest.approx(0.5)
    manager.free(0)
    assert manager.count_empty_nodes() == 1
    assert manager.assign_from_params(5, 1, 1, 0, 1, 2, 1.0).node_ids == ["0"]


@pytest.mark.parametrize("packing", range(1, 65))
def test_jobs_that_share_a_node_come_one_by_one_as_it_has_room(packing: int) -> None:
    """The server gives out jobs whose shares add up to what is free, at most: neither too few nor too many."""

    class WithoutCpus(ComputeNode):
        def check_fit(self, num_cpus: int, num_gpus: int, occupancy: float) -> bool:
            return super().check_fit(0, num_gpus, occupancy)

    manager = QuickNodeManager([WithoutCpus("0", "host")])

    def given_out() -> int:
        shares = itertools.accumulate(itertools.repeat(1.0 / packing, packing + 1))
        return sum(share <= manager.aggregate_free_nodes() for share in shares)

    assert given_out() == packing
    assert sum(ask(manager, job, 1, packing, 0) for job in range(packing)) == packing
    assert given_out() == 0
    for ended in range(packing):
        manager.free(ended)
        assert given_out() == ended + 1


def test_more_than_a_node_has_is_refused_and_changes_nothing() -> None:
    manager = QuickNodeManager(nodes(2))
    with pytest.raises(InsufficientResources):
        manager.assign_from_params(1, 1, 1, 0, 1, 3, 1.0)  # gpus
    with pytest.raises(InsufficientResources):
        manager.assign_from_params(1, 3, 1, 0, 1, 0, 1.0)
    assert manager.count_empty_nodes() == 2
    assert manager.job_node_map == {}
