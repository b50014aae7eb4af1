"""DeepHyper searches whose evaluations are Balsam jobs.

A search file defines `search = Search(...)`; `ensemble search run FILE` runs it.  From one's own DeepHyper script, take
`BalsamEvaluator`.  Nothing is imported from DeepHyper before it is needed.
"""

from ensemble.search.definition import Search, load_search

__all__ = ["Search", "load_search"]
