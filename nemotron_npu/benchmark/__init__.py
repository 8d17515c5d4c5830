"""``--benchmark``: start, steps, recordings and memory of several engines and dtypes, measured in one run.

Every timing alternates: each round times all candidates once, so that a machine that slows down slows all of them, and
the ratios hold.  The rates of the machine itself are measured in the same run.
"""
