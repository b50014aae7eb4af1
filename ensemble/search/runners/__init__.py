"""Runners: where the driver's trials run.  The contract, and how to add one, is in contract.py."""

from ensemble.search.runners.contract import Assignment, Report, Runner, TrialParameters, refused

__all__ = ["Assignment", "Report", "Runner", "TrialParameters", "refused"]
