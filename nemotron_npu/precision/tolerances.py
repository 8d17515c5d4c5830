"""How far each dtype may be from the reference before ``--precision_compare`` calls it wrong."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import SetupError

ROW_FACTOR = 10  # one row (a frame, a token) may be so many times further off than the bound for the whole recording


@dataclass(frozen=True)
class Bounds:
    """What a dtype is allowed, in percent.  The first four are relative L1 errors over a recording; a single frame (of
    mel, encoder or cache; for the joint a step of the search) may be ``ROW_FACTOR`` times as far off."""

    mel: float
    """Log-mel features.  They are float32 on every dtype."""
    encoder: float
    """Subsampling, each layer, its caches and the encoder output, accumulated."""
    alone: float
    """Each of them, and prediction and joint network, given the reference's input."""
    joint: float
    """Log-probabilities along the reference's path, accumulated."""
    tokens: float
    """Tokens (id and frame) that differ from the reference's, of all recordings together."""
    words: float
    """Word error rate against the reference's words, of all recordings together."""

    def changed(self, text: str | None) -> Bounds:
        """These, but for ``"encoder=2,tokens=0.5"``.  Raises SetupError for what is no bound."""
        names = [f.name for f in dataclasses.fields(self)]
        changes = {}
        for item in text.split(",") if text else []:
            name, _, value = item.partition("=")
            try:
                changes[name.strip()] = number = float(value)
            except ValueError:
                number = -1.0
            if name.strip() not in names or not number >= 0:
                raise SetupError(f"--bounds: {item!r} is none: NAME=PERCENT, NAME one of {', '.join(names)}")
        return dataclasses.replace(self, **changes)


# Chosen above what was seen, so that what exceeds them is a fault and not the dtype.  The largest of any recording,
# with the bundled model (5 layers) on a CPU and, for the whole encoder in that dtype, on the fake npu of the tests:
#
#                    float32   float16   bfloat16   int8
#     encoder        0.00004   0.23      1.4        1.3
#     alone          0.00004   0.17      1.1        1.0
#     joint          0.00001   0.025     0.15       0.22
#
# float32: the encoder's is the write-up's own, whose NPU was at 0.055 % behind 24 layers; a device need not round as a
# CPU does, but its tokens must be the same.  The others: two to five times what was seen: 24 layers add up to more.
BOUNDS = {
    "float32": Bounds(mel=0.01, encoder=1.0, alone=0.1, joint=0.5, tokens=0.0, words=0.0),
    "float16": Bounds(mel=0.01, encoder=1.0, alone=0.5, joint=0.5, tokens=1.0, words=1.0),
    "bfloat16": Bounds(mel=0.01, encoder=5.0, alone=3.0, joint=1.0, tokens=2.0, words=2.0),
    "int8": Bounds(mel=0.01, encoder=5.0, alone=3.0, joint=1.0, tokens=2.0, words=2.0),
}
