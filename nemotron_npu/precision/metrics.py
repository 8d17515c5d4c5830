"""How far one tensor is from another: figures of two whole ones, and of a stage that comes piece by piece.

Everything is computed in float64 on the host, so that the measure adds no error of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .tolerances import ROW_FACTOR

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
