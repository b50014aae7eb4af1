"""Looking at volumes, meshes, skeletons and synapses in neuroglancer, served from this machine to this machine."""

from __future__ import annotations

from ensemble.viewing.agreement import disagreements
from ensemble.viewing.link import viewer_state
from ensemble.viewing.server import ViewServer
from ensemble.viewing.stores import OpenStores, Stores, open_stores

__all__ = ["OpenStores", "Stores", "ViewServer", "disagreements", "open_stores", "viewer_state"]
