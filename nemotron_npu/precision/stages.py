"""Figures and failures of all stages, for recordings that both sides processed in the same way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from .metrics import Row, Tally
from .probes import CACHES
from .tokens import Decisions
from .tolerances import ROW_FACTOR, Tolerances

PICTURE_ROWS = 128  # channels of a block's differences that are kept for a figure


def stage_names(layers: int) -> list[str]:
    """Return the stages in the order in which audio passes them.

    The caches of a layer come before it, since its output is computed from them.
    """
    names = ["log-mel", "subsampling"]
    for index in range(layers):
        names += [f"{cache} of layer {index}" for cache in CACHES]
        names.append(f"layer {index}")
    return [*names, "encoder output", "prediction network", "joint"]


class StageTallies:
    """The tallies of all stages, by name: accumulated errors, or those of each stage alone."""

    def __init__(self, tolerances: Tolerances, *, alone: bool) -> None:
        self.tolerances, self.alone = tolerances, alone
        self.tallies: dict[str, Tally] = {}

    def __getitem__(self, stage: str) -> Tally:
        if stage not in self.tallies:
            self.tallies[stage] = Tally(self._tolerance(stage), keeps_rows=stage == "encoder output")
        return self.tallies[stage]

    def get(self, stage: str) -> Tally | None:
        """Return the tally of a stage, or None if it was not measured."""
        return self.tallies.get(stage)

    def _tolerance(self, stage: str) -> float:
        if stage == "log-mel":
            return self.tolerances.mel
        if self.alone or stage == "prediction network":  # its input are tokens: nothing accumulates
            return self.tolerances.alone
        return self.tolerances.joint if stage == "joint" else self.tolerances.encoder

    def absorb(self, other: StageTallies, audio: str) -> None:
        """Add the figures of the recording ``audio``."""
        for stage, tally in other.tallies.items():
            self[stage].absorb(tally, audio)


@dataclass
class Repeat:
    """Two runs of one side on the same input: they have to agree to the last bit."""

    max_error: float = 0.0
    stage: str | None = None
    """The first stage that differed, in the first block that did."""

    def check(self, stage: str, one: torch.Tensor, other: torch.Tensor) -> None:
        """Compare the bits of a stage's two float32 outputs."""
        same_shape = one.shape == other.shape
        if same_shape and torch.equal(one.view(torch.int32), other.view(torch.int32)):
            return
        self.stage = self.stage or stage
        error = float((one - other).abs().nan_to_num(np.inf).max()) if same_shape else np.inf
        self.max_error = max(self.max_error, error)

    def absorb(self, other: Repeat) -> None:
        """Add the repeat of another recording."""
        self.max_error = max(self.max_error, other.max_error)
        self.stage = self.stage or other.stage


@dataclass(frozen=True)
class Failure:
    """One stage that exceeds its tolerance, or fails otherwise."""

    stage: str
    reason: str
    audio: str = ""
    frame: int | None = None
    step: int | None = None
    time: float | None = None
    """Seconds from the start of the recording."""

    def __str__(self) -> str:
        line = f"{self.stage}: {self.reason}"
        if self.time is not None:
            line += f" from {self.time:.2f} s on (frame {self.frame}, step {self.step})"
        return f"{line} in {self.audio}" if self.audio else line


class Picture(NamedTuple):
    """|candidate - reference| of a stage of one recording."""

    channels: int
    """Of the stage's output."""
    blocks: list[np.ndarray]
    """Float32 [frames, rows] of each block: the channels, pooled to ``PICTURE_ROWS`` by their maximum."""


@dataclass
class LockstepRun:
    """The figures of recordings that both sides processed in one way: whole, or as streams of one chunk length."""

    tolerances: Tolerances
    layers: int
    frame_seconds: float
    chunk_ms: int | None
    live: bool
    block: int = 1
    """Encoder frames of a step."""
    accumulated: StageTallies = field(init=False)
    alone: StageTallies = field(init=False)
    decisions: Decisions = field(default_factory=Decisions)
    candidate_repeat: Repeat = field(default_factory=Repeat)
    reference_repeat: Repeat = field(default_factory=Repeat)
    frames: int = 0
    mismatch: str | None = None
    """Describes two different numbers of feature frames."""
    failed: list[Failure] = field(default_factory=list)
    """The ``stage_failures`` of each absorbed recording."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    """|candidate - reference| of log-mel and encoder output of one recording."""

    def __post_init__(self) -> None:
        self.accumulated = StageTallies(self.tolerances, alone=False)
        self.alone = StageTallies(self.tolerances, alone=True)

    @classmethod
    def like(cls, other: LockstepRun) -> LockstepRun:
        """Return an empty run that can absorb others of the same way."""
        return cls(other.tolerances, other.layers, other.frame_seconds, other.chunk_ms, other.live, other.block)

    @property
    def name(self) -> str:
        """The key of this way in ``precision.json``."""
        return f"stream, {self.chunk_ms} ms" if self.live else "recording"

    def absorb(self, other: LockstepRun, audio: str) -> None:
        """Add the figures of the recording ``audio``."""
        self.frames += other.frames
        self.accumulated.absorb(other.accumulated, audio)
        self.alone.absorb(other.alone, audio)
        self.decisions.absorb(other.decisions, audio)
        self.candidate_repeat.absorb(other.candidate_repeat)
        self.reference_repeat.absorb(other.reference_repeat)
        self.failed += [dataclasses.replace(failure, audio=audio) for failure in other.stage_failures()]

    def keep_picture(self, stage: str, difference: torch.Tensor) -> None:
        """Keep the differences [frames, channels] of a block."""
        pooled = difference.abs().nan_to_num(0.0, 0.0, 0.0)
        if pooled.shape[1] > PICTURE_ROWS:
            pooled = torch.nn.functional.adaptive_max_pool1d(pooled[None], PICTURE_ROWS)[0]
        picture = self.pictures.setdefault(stage, Picture(difference.shape[1], []))
        picture.blocks.append(pooled.float().numpy())

    def stage_failures(self) -> list[Failure]:
        """Return the stages of one recording that exceed, in the order in which audio passes them."""
        found = []
        for stage in stage_names(self.layers):
            if stage == "log-mel" and self.mismatch:
                found.append(self._failure(stage, self.mismatch, self.accumulated["log-mel"].first))
                continue
            for stages in (self.accumulated, self.alone):
                tally = stages.get(stage)
                if tally is not None and tally.exceeds:
                    found.append(self._failure(stage, _reason(tally, alone=stages.alone), tally.first))
        return found

    def _failure(self, stage: str, reason: str, row: Row | None) -> Failure:
        if row is None:
            return Failure(stage, reason)
        return Failure(stage, reason, "", row.frame, row.step, round(row.frame * self.frame_seconds, 3))

    def failures(self) -> list[Failure]:
        """Return every failure, the first stage first."""
        order = {name: index for index, name in enumerate(stage_names(self.layers))}
        found = sorted(self.failed or self.stage_failures(), key=lambda failure: order[failure.stage])
        return found + self._decision_failures() + self._repeat_failures()

    def _decision_failures(self) -> list[Failure]:
        """Return the failures of tokens and words, at the first decision that differs."""
        d = self.decisions
        found, where = [], {}
        if d.first_difference:
            where = {key: d.first_difference.get(key, "") for key in ("audio", "frame", "step", "time")}
        if d.search_fault:
            found.append(Failure("tokens", d.search_fault, **where))
        elif d.token_errors > allowed(self.tolerances.tokens, d.reference_tokens):
            reason = _too_many(d.token_errors, d.reference_tokens, self.tolerances.tokens)
            found.append(Failure("tokens", reason, **where))
        if d.word_errors > allowed(self.tolerances.words, d.reference_words):
            reason = _too_many(d.word_errors, d.reference_words, self.tolerances.words)
            found.append(Failure("words", reason, **where))
        return found

    def _repeat_failures(self) -> list[Failure]:
        found = []
        for side, repeat in (("candidate", self.candidate_repeat), ("reference", self.reference_repeat)):
            if repeat.stage:
                found.append(Failure(repeat.stage, f"two runs of the {side} differ by up to {repeat.max_error:.3g}"))
        return found


def allowed(tolerance: float, count: int) -> float:
    """Return how many of ``count`` tokens or words may differ: at least one, unless the tolerance is 0."""
    return max(1.0, tolerance * count / 100) if tolerance else 0.0


def _too_many(errors: int, count: int, tolerance: float) -> str:
    return f"{errors:,} of {count:,} differ, {100 * errors / max(1, count):.2f} % > {tolerance:g} %"


def _reason(tally: Tally, *, alone: bool) -> str:
    given = " given the reference's input" if alone else ""
    for side, count in (("candidate", tally.candidate_not_finite), ("reference", tally.reference_not_finite)):
        if count:
            values = "value" if count == 1 else "values"
            return f"{count:,} {values} of the {side} not finite{given}"
    if tally.percent > tally.tolerance or tally.over is None:
        return f"error {tally.percent:.3g} % > {tally.tolerance:g} %{given}"
    return f"error {tally.over.percent:.3g} % > {ROW_FACTOR * tally.tolerance:g} % in one frame{given}"
