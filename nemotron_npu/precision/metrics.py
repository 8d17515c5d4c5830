"""Measure the error between two tensors, and of a stage whose rows arrive block by block.

All sums are computed in float64 on the host, so that measuring adds no error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .tolerances import ROW_FACTOR

QUIET = 0.1  # share of the mean row's magnitude: a quieter row is measured against this, since its own sum is too small


@dataclass(frozen=True)
class Difference:
    """Element-wise differences of two float32 tensors of the same shape."""

    mse: float
    mae: float
    max_error: float
    relative_error_percent: float
    """Relative L1 error: 100 * sum|a - b| / sum|b|."""


def difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Measure ``a`` against ``b``.  Raises ValueError when the shapes differ."""
    _check_shapes(a, b)
    a, b = a.double(), b.double()
    error = (a - b).abs()
    percent = _percent(float(error.sum()), float(b.abs().sum()))
    return Difference(float((error**2).mean()), float(error.mean()), float(error.max()), percent)


@dataclass(frozen=True)
class Row:
    """The error of one row of a stage, and its position."""

    percent: float
    """Relative L1 error; infinite if a value is not finite."""
    frame: int
    """The row's encoder frame, counted from the start of the recording."""
    step: int
    """The encoder's block that contains the row."""
    audio: str = ""


@dataclass
class Tally:
    """The figures of one stage, summed up block by block; the rows themselves are not kept.

    A recording exceeds ``tolerance`` when its relative error is larger, when the error of a single row is larger than
    ``ROW_FACTOR`` times the tolerance, or when a value is not finite.  The figures cover the elements that are finite
    on both sides.
    """

    tolerance: float
    """Allowed relative L1 error of a recording, in percent."""
    keeps_rows: bool = False
    """Whether the error of every row is kept, for a plot."""
    elements: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(6))
    """Sums of |c - r|, (c - r)^2, |r|, r^2, c^2 and c * r, with c the candidate and r the reference."""
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
    """The first row above ``tolerance``: the excess of a whole recording begins there."""
    trace: list[np.ndarray] = field(default_factory=list)
    exceeding: list[str] = field(default_factory=list)
    """The absorbed recordings that exceeded."""

    def add(self, candidate: torch.Tensor, reference: torch.Tensor, frames: np.ndarray, steps: np.ndarray) -> None:
        """Add the next rows.

        ``candidate``, ``reference``: [rows, width] on the host.  ``frames``, ``steps``: int [rows], the encoder frame
        and block of each row.
        """
        _check_shapes(candidate, reference)
        if not candidate.numel():
            return
        c, r = candidate.double(), reference.double()
        finite = torch.isfinite(c) & torch.isfinite(r)
        if not finite.all():
            self.candidate_not_finite += int((~torch.isfinite(c)).sum())
            self.reference_not_finite += int((~torch.isfinite(r)).sum())
            c, r = torch.where(finite, c, 0.0), torch.where(finite, r, 0.0)
        self.elements += int(finite.sum())
        percent = self._add_sums(c, r)
        percent[~finite.all(1)] = math.inf
        self._add_rows(percent.numpy(), frames, steps)

    def _add_sums(self, c: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """Add finite rows to all sums, and return the relative error of each in percent, float64 [rows]."""
        error = (c - r).abs()
        row_error, row_scale = error.sum(1), r.abs().sum(1)
        self.rows += len(c)
        totals = (row_error.sum(), (error**2).sum(), row_scale.sum(), (r**2).sum(), (c**2).sum(), (c * r).sum())
        self.sums += [float(total) for total in totals]
        self.max_error = max(self.max_error, float(error.max()))
        self.candidate_range = _widen(self.candidate_range, c)
        self.reference_range = _widen(self.reference_range, r)
        floor = QUIET * self.sums[2] / self.rows
        return 100 * row_error / row_scale.clamp(min=max(floor, 1e-300))

    def _add_rows(self, percent: np.ndarray, frames: np.ndarray, steps: np.ndarray) -> None:
        """Keep the worst row and the first ones that exceed."""
        if self.keeps_rows:
            self.trace.append(percent.astype(np.float32))

        def row(index: int) -> Row:
            return Row(float(percent[index]), int(frames[index]), int(steps[index]))

        largest = int(percent.argmax())
        if self.worst is None or percent[largest] > self.worst.percent:
            self.worst = row(largest)
        if self.over is None and percent[largest] > ROW_FACTOR * self.tolerance:
            self.over = row(int((percent > ROW_FACTOR * self.tolerance).argmax()))
        if self.above is None and percent[largest] > self.tolerance:
            self.above = row(int((percent > self.tolerance).argmax()))

    def absorb(self, other: Tally, audio: str) -> None:
        """Add the figures of the recording ``audio``."""
        self.elements += other.elements
        self.sums = self.sums + other.sums
        self.rows += other.rows
        self.max_error = max(self.max_error, other.max_error)
        self.candidate_range = _merge(self.candidate_range, other.candidate_range)
        self.reference_range = _merge(self.reference_range, other.reference_range)
        self.candidate_not_finite += other.candidate_not_finite
        self.reference_not_finite += other.reference_not_finite
        if other.worst and (self.worst is None or other.worst.percent > self.worst.percent):
            self.worst = Row(other.worst.percent, other.worst.frame, other.worst.step, audio)
        if other.exceeds:
            self.exceeding.append(audio)

    @property
    def percent(self) -> float:
        """Relative L1 error over all rows."""
        return _percent(self.sums[0], self.sums[2])

    @property
    def exceeds(self) -> bool:
        """Whether this recording, or an absorbed one, exceeds the tolerance."""
        if self.exceeding or self.over is not None:
            return True
        return self.above is not None and self.percent > self.tolerance

    @property
    def first(self) -> Row | None:
        """The row from which on a recording exceeds."""
        return (self.over or self.above) if self.exceeds else None

    @property
    def snr_db(self) -> float:
        """Signal-to-error ratio, 10 log10(sum r^2 / sum (c - r)^2); infinite where both are equal."""
        if not (self.sums[1] and self.sums[3]):
            return math.inf
        return 10 * math.log10(self.sums[3] / self.sums[1])

    @property
    def cosine(self) -> float:
        """Cosine similarity of candidate and reference."""
        norms = math.sqrt(self.sums[3] * self.sums[4])
        return float(self.sums[5] / norms) if norms else 1.0

    def as_dict(self) -> dict:
        """Return the figures as ``report.schema.json`` describes them."""
        worst = self.worst or Row(0.0, 0, 0)
        count = max(1, self.elements)  # without elements the sums are 0
        return {
            "elements": self.elements,
            "mae": self.sums[0] / count,
            "mse": self.sums[1] / count,
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
            "bound_percent": self.tolerance,
            "verdict": verdict(passed=not self.exceeds),
        }


def verdict(*, passed: bool) -> str:
    """Return the word that stands for it in reports and on a terminal."""
    return "PASSED" if passed else "FAILED"


def _check_shapes(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")


def _percent(error: float, scale: float) -> float:
    if not scale:
        return 0.0 if error == 0 else math.inf
    return float(100 * error / scale)


def _widen(limits: tuple[float, float], x: torch.Tensor) -> tuple[float, float]:
    return _merge(limits, (float(x.min()), float(x.max())))


def _merge(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])
