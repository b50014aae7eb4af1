"""The one error of this package."""


class AnalysisError(ValueError):
    """A table, column or picture cannot be used; the message names it, what was expected, and what to do."""
