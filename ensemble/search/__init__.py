"""DeepHyper searches whose evaluations are Balsam jobs.

A search file defines `search = Search(...)`; `ensemble search run FILE` runs it.  From one's own DeepHyper script, take
`BalsamEvaluator`.  Nothing is imported from DeepHyper before it is needed.
"""

# DeepHyper imports Ray where that is installed, which puts a psutil of its own first: ours is loaded before it.
import psutil  # noqa: F401

from ensemble.search.definition import JobSize, Retries, Search, TrialRequest, load_search

__all__ = ["JobSize", "Retries", "Search", "TrialRequest", "load_search"]
