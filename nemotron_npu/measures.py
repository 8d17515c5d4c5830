"""How far one tensor is from another, of two whole ones or piece by piece, and how far it may be.

Everything is computed in float64 on the host, so that the measure adds no error of its own.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .errors import SetupError

ROW_FACTOR = 10  # one row (a frame, a token) may be so many times further off than the bound for the whole recording
QUIET = 0.1  # of the mean row: a row with less in it is measured against this much, since its own sum says little


@dataclass(frozen=True)
class Difference:
    """How far ``a`` is from ``b``, element by element; both float32 of the same shape."""

    mse: float
    mae: float
    max_error: float
    relative_error_percent: float
    """Relative L1 error: 100 * sum|a - b| / sum|b|."""


def difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Raises ValueError when the shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()
    error = (a - b).abs()
    total, scale = float(error.sum()), float(b.abs().sum())
    return Difference(float((error**2).mean()), float(error.mean()), float(error.max()), _percent(total, scale))


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


@dataclass(frozen=True)
class Row:
    """One row of a stage: how far off it is, and where it lies."""

    percent: float
    """Relative L1 error; infinite if a value is not finite."""
    frame: int
    """Encoder frame that it belongs to, counted from the start of the recording."""
    step: int
    """Block of the encoder in which it was seen."""
    audio: str = ""


@dataclass
class Tally:
    """The figures of one stage, summed up piece by piece; what is summed is not kept.

    A recording exceeds ``bound`` when its relative error does, when that of a single row is over ``ROW_FACTOR`` times
    as much, or when a value is not finite.  Figures are over the elements that are finite on both sides.
    """

    bound: float
    """Percent of relative L1 error that is allowed over a recording."""
    keeps_rows: bool = False
    """Whether the error of every row is kept, for a plot."""
    elements: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(6))
    """Of |c - r|, (c - r)^2, |r|, r^2, c^2 and c * r."""
    rows: int = 0
    max_error: float = 0.0
    candidate_range: tuple[float, float] = (math.inf, -math.inf)
    reference_range: tuple[float, float] = (math.inf, -math.inf)
    candidate_not_finite: int = 0
    reference_not_finite: int = 0
    worst: Row | None = None
    over: Row | None = None
    """The first row that exceeds by itself."""
    above: Row | None = None
    """The first row above ``bound``: where an excess of the whole recording begins."""
    trace: list[np.ndarray] = field(default_factory=list)
    exceeding: list[str] = field(default_factory=list)
    """Recordings, of those ``absorb``ed, that exceeded."""

    def add(self, candidate: torch.Tensor, reference: torch.Tensor, frames: np.ndarray, steps: np.ndarray) -> None:
        """The next rows: both [rows, width] on the host, and of each its encoder frame and step, int [rows]."""
        if candidate.shape != reference.shape:
            raise ValueError(f"shapes differ: {list(candidate.shape)} and {list(reference.shape)}")
        if not candidate.numel():
            return
        c, r = candidate.double(), reference.double()
        finite_c, finite_r = torch.isfinite(c), torch.isfinite(r)
        broken = None
        if not (finite_c.all() and finite_r.all()):
            self.candidate_not_finite += int((~finite_c).sum())
            self.reference_not_finite += int((~finite_r).sum())
            finite = finite_c & finite_r
            broken = ~finite.all(1)
            c, r = torch.where(finite, c, 0.0), torch.where(finite, r, 0.0)
            self.elements -= int((~finite).sum())
        error, magnitude = (c - r).abs(), r.abs()
        by_row, scale = error.sum(1), magnitude.sum(1)
        self.elements += c.numel()
        self.rows += len(c)
        self.sums += [
            float(total)
            for total in (by_row.sum(), (error**2).sum(), scale.sum(), (r**2).sum(), (c**2).sum(), (c * r).sum())
        ]
        self.max_error = max(self.max_error, float(error.max()))
        self.candidate_range = _widened(self.candidate_range, c)
        self.reference_range = _widened(self.reference_range, r)
        floor = QUIET * self.sums[2] / self.rows
        percent = 100 * by_row / scale.clamp(min=max(floor, 1e-300))
        if broken is not None:
            percent[broken] = math.inf
        percent = percent.numpy()
        if self.keeps_rows:
            self.trace.append(percent.astype(np.float32))

        def row(index) -> Row:
            return Row(float(percent[index]), int(frames[index]), int(steps[index]))

        largest = int(percent.argmax())
        if self.worst is None or percent[largest] > self.worst.percent:
            self.worst = row(largest)
        if self.over is None and percent[largest] > ROW_FACTOR * self.bound:
            self.over = row(int((percent > ROW_FACTOR * self.bound).argmax()))
        if self.above is None and percent[largest] > self.bound:
            self.above = row(int((percent > self.bound).argmax()))

    def absorb(self, other: Tally, audio: str) -> None:
        """Add the figures of a recording called ``audio`` to those of the others."""
        self.elements += other.elements
        self.sums = self.sums + other.sums
        self.rows += other.rows
        self.max_error = max(self.max_error, other.max_error)
        for name in ("candidate_range", "reference_range"):
            (low, high), (other_low, other_high) = getattr(self, name), getattr(other, name)
            setattr(self, name, (min(low, other_low), max(high, other_high)))
        self.candidate_not_finite += other.candidate_not_finite
        self.reference_not_finite += other.reference_not_finite
        if other.worst and (self.worst is None or other.worst.percent > self.worst.percent):
            self.worst = Row(other.worst.percent, other.worst.frame, other.worst.step, audio)
        if other.exceeds:
            self.exceeding.append(audio)

    @property
    def percent(self) -> float:
        return _percent(self.sums[0], self.sums[2])

    @property
    def exceeds(self) -> bool:
        """Whether the bound is exceeded, by this recording or one that was absorbed."""
        return bool(self.exceeding) or self.over is not None or (self.above is not None and self.percent > self.bound)

    @property
    def first(self) -> Row | None:
        """Where a recording that exceeds begins to."""
        return (self.over or self.above) if self.exceeds else None

    @property
    def snr_db(self) -> float:
        """Signal-to-error ratio, 10 log10(sum r^2 / sum (c - r)^2); infinite where both are equal."""
        return 10 * math.log10(self.sums[3] / self.sums[1]) if self.sums[1] and self.sums[3] else math.inf

    @property
    def cosine(self) -> float:
        norms = math.sqrt(self.sums[3] * self.sums[4])
        return float(self.sums[5] / norms) if norms else 1.0

    def as_dict(self) -> dict:
        worst = self.worst or Row(0.0, 0, 0)
        return {
            "elements": self.elements,
            "mae": self.sums[0] / self.elements if self.elements else 0.0,
            "mse": self.sums[1] / self.elements if self.elements else 0.0,
            "max_error": self.max_error,
            "relative_error_percent": self.percent,
            "worst_row_percent": worst.percent,
            "worst_row_frame": worst.frame,
            "cosine": self.cosine,
            "snr_db": self.snr_db,
            "candidate_range": list(self.candidate_range),
            "reference_range": list(self.reference_range),
            "candidate_not_finite": self.candidate_not_finite,
            "reference_not_finite": self.reference_not_finite,
            "bound_percent": self.bound,
            "verdict": "FAILED" if self.exceeds else "PASSED",
        }


def _percent(error: float, scale: float) -> float:
    if not scale:
        return 0.0 if error == 0 else math.inf
    return float(100 * error / scale)


def _widened(limits: tuple[float, float], x: torch.Tensor) -> tuple[float, float]:
    return min(limits[0], float(x.min())), max(limits[1], float(x.max()))
