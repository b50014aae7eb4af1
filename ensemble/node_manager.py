"""A launcher's book of which jobs use which nodes, quick for thousands of nodes.

Balsam's own looks at all nodes for every job that is placed and in every turn of the launcher's loop.
"""

from __future__ import annotations

import heapq

from balsam.platform.compute_node import ComputeNode
from balsam.site.launcher.node_manager import InsufficientResources, NodeManager, NodeSpec

FULL = 0.999  # occupancy from which on Balsam takes a node for full
SLACK = 1e-9  # nodes: more than sums of shares such as thirds are off, less than any share


class QuickNodeManager(NodeManager):
    """Balsam's NodeManager with its empty nodes at hand.  All nodes are alike."""

    def __init__(self, node_list: list[ComputeNode], allow_node_packing: bool = True) -> None:
        super().__init__(node_list, allow_node_packing)
        self._empty = list(range(len(node_list)))  # a heap: lower numbers first
        self._shared: set[int] = set()  # neither empty nor full

    def count_empty_nodes(self) -> int:
        return len(self._empty)

    def aggregate_free_nodes(self) -> float:
        """Nodes that are free, and the least bit more where any is.

        The server gives out jobs whose shares add up to this at most.  Of a node that was full of thirds, one that ends
        leaves a third less 1e-16: by Balsam's own book no job comes until another third ends.
        """
        free = len(self._empty) + sum(1.0 - self.nodes[index].occupancy for index in self._shared)
        return free + SLACK if free > 0.0 else 0.0

    def free(self, job_id: int) -> None:
        used = self.job_node_map[job_id]
        super().free(job_id)
        for index in used:
            if self.nodes[index].occupancy == 0.0:
                self._shared.discard(index)
                heapq.heappush(self._empty, index)
            else:
                self._shared.add(index)

    def _assign_single_node(self, job_id: int, num_cpus: int, num_gpus: int, node_occupancy: float) -> NodeSpec:
        occupancy = node_occupancy if self.allow_node_packing else 1.0
        for index in (*sorted(self._shared), *self._empty[:1]):
            node = self.nodes[index]
            if node.check_fit(num_cpus, num_gpus, occupancy):
                given = node.assign(job_id, num_cpus, num_gpus, occupancy)
                self._assigned(job_id, [index])
                return NodeSpec(
                    node_ids=[node.node_id],
                    hostnames=[node.hostname],
                    cpu_ids=[given["cpu_ids"]],
                    gpu_ids=[given["gpu_ids"]],
                )
        raise InsufficientResources

    def _assign_multi_node(self, job_id: int, num_nodes: int) -> NodeSpec:
        if num_nodes > len(self._empty):
            raise InsufficientResources
        found = heapq.nsmallest(num_nodes, self._empty)
        nodes = [self.nodes[index] for index in found]
        given = [node.assign(job_id, num_cpus=0, num_gpus=0, occupancy=1.0) for node in nodes]
        self._assigned(job_id, found)
        return NodeSpec(
            node_ids=[node.node_id for node in nodes],
            hostnames=[node.hostname for node in nodes],
            gpu_ids=[of_node["gpu_ids"] for of_node in given],
        )

    def _assigned(self, job_id: int, used: list[int]) -> None:
        self.job_node_map[job_id] = used
        for index in used:
            # Whoever is given an empty node is given the first ones: they are at the top of the heap.
            if self._empty and self._empty[0] == index:
                heapq.heappop(self._empty)
            (self._shared.discard if self.nodes[index].occupancy > FULL else self._shared.add)(index)
