"""Exit codes; signals add 130, 143 and 129."""

OK = 0
SOME_FAILED = 1
"""An input failed, or a comparison did not pass."""
UNUSABLE = 2
"""Wrong usage or environment."""
