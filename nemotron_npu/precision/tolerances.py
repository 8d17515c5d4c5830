"""The largest errors that each dtype may have before ``--precision_compare`` fails it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import SetupError

ROW_FACTOR = 10  # the error of one row (a frame, a token) may be this many times the tolerance of a whole recording


@dataclass(frozen=True)
class Tolerances:
    """The allowed errors of one dtype, in percent.

    The first four are relative L1 errors over a recording.  A single row (a frame of log-mel, encoder or cache; for
    the joint network a decoding step) may reach ``ROW_FACTOR`` times as much.
    """

    mel: float
    """Log-mel features.  They are float32 with every dtype."""
    encoder: float
    """Subsampling, each layer, its caches and the encoder output, accumulated."""
    alone: float
    """Each of these, and the prediction and joint networks, given the reference's input."""
    joint: float
    """Log-probabilities along the reference's path, accumulated."""
    tokens: float
    """Tokens (id and frame) that differ from the reference's, over all recordings."""
    words: float
    """Word error rate against the reference's words, over all recordings."""

    def with_changes(self, text: str | None) -> Tolerances:
        """Apply ``text``, for example ``"encoder=2,tokens=0.5"``; None changes nothing.  Raises SetupError."""
        if not text:
            return self
        names = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **dict(_parse_change(item, names) for item in text.split(",")))


def _parse_change(item: str, names: list[str]) -> tuple[str, float]:
    """Split ``NAME=PERCENT``.  Raises SetupError for an unknown name or a percentage that is not 0 or more."""
    name, _, value = item.partition("=")
    name = name.strip()
    try:
        percent = float(value)
    except ValueError:
        percent = -1.0
    if name not in names or not percent >= 0:  # NaN is not either
        raise SetupError(
            f"--bounds {item.strip()}", "not a tolerance", f"use NAME=PERCENT, NAME one of {', '.join(names)}"
        )
    return name, percent


# Each tolerance is above every error seen, so that a larger error means a fault and not the dtype.  These are the
# largest errors of any recording, with the bundled model (5 layers) on a CPU and, for the whole encoder in that dtype,
# on the simulated NPU of the tests:
#
#                    float32   float16   bfloat16   int8
#     encoder        0.00004   0.23      1.4        1.3
#     alone          0.00004   0.17      1.1        1.0
#     joint          0.00001   0.025     0.15       0.22
#
# float32: 1 % for the encoder is the reference guide's own threshold; the guide's NPU had 0.055 % after 24 layers.  A
# device need not round as a CPU does, but it has to give the same tokens.  The other dtypes may have two to five times
# the errors seen, since 24 layers accumulate more than 5.
TOLERANCES = {
    "float32": Tolerances(mel=0.01, encoder=1.0, alone=0.1, joint=0.5, tokens=0.0, words=0.0),
    "float16": Tolerances(mel=0.01, encoder=1.0, alone=0.5, joint=0.5, tokens=1.0, words=1.0),
    "bfloat16": Tolerances(mel=0.01, encoder=5.0, alone=3.0, joint=1.0, tokens=2.0, words=2.0),
    "int8": Tolerances(mel=0.01, encoder=5.0, alone=3.0, joint=1.0, tokens=2.0, words=2.0),
}
