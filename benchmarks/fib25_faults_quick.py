"""The same faults in a search of tiny networks, for `python -m benchmarks.fib25_search --quick`."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.fib25_faults import with_faults
from ensemble.search.definition import Retries
from tests.ensemble.tiny_search import search as tiny

search = replace(with_faults(tiny, time_limit_s=30.0), retries=Retries(backoff_s=2.0))
