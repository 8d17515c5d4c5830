"""Walk recordings through two recognisers in lock-step, block by block, and sum up where and by how much they part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch

from ..audio import SAMPLE_RATE
from ..transcript import Transcript
from .metrics import Row, Tally
from .probes import CACHES, NativeProbe, NemoProbe
from .tokens import Decisions, Path, count_tokens, count_words, decide
from .tolerances import ROW_FACTOR, Bounds

Probe = NativeProbe | NemoProbe

PICTURE_ROWS = 128  # of a block's differences, kept for a picture


def stage_names(layers: int) -> list[str]:
    """In the order in which sound passes them; a layer's caches come before it, since its output is made of them."""
    names = ["log-mel", "subsampling"]
    for index in range(layers):
        names += [f"{cache} of layer {index}" for cache in CACHES] + [f"layer {index}"]
    return [*names, "encoder output", "prediction network", "joint"]


class Stages:
    """The tallies of all stages in one way of measuring, by name."""

    def __init__(self, bounds: Bounds, alone: bool):
        self.bounds, self.alone = bounds, alone
        self.tallies: dict[str, Tally] = {}

    def __getitem__(self, stage: str) -> Tally:
        if stage not in self.tallies:
            self.tallies[stage] = Tally(self._bound(stage), keeps_rows=stage == "encoder output")
        return self.tallies[stage]

    def get(self, stage: str) -> Tally | None:
        return self.tallies.get(stage)

    def _bound(self, stage: str) -> float:
        if stage == "log-mel":
            return self.bounds.mel
        if self.alone or stage == "prediction network":  # whose input are tokens: nothing is accumulated
            return self.bounds.alone
        return self.bounds.joint if stage == "joint" else self.bounds.encoder

    def absorb(self, other: Stages, audio: str) -> None:
        for stage, tally in other.tallies.items():
            self[stage].absorb(tally, audio)


@dataclass
class Repeat:
    """Two runs of one side on the same input: they must agree to the last bit."""

    max_error: float = 0.0
    stage: str | None = None
    """The first stage that differed, in the first block that did."""

    def check(self, stage: str, one: torch.Tensor, other: torch.Tensor) -> None:
        if one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32)):
            return
        self.stage = self.stage or stage
        same = one.shape == other.shape
        self.max_error = max(self.max_error, float((one - other).abs().nan_to_num(np.inf).max()) if same else np.inf)

    def absorb(self, other: Repeat) -> None:
        self.max_error = max(self.max_error, other.max_error)
        self.stage = self.stage or other.stage


@dataclass(frozen=True)
class Failure:
    """One stage that is not what it should be."""

    stage: str
    reason: str
    audio: str = ""
    frame: int | None = None
    step: int | None = None
    time: float | None = None
    """Seconds from the start of the recording."""

    def __str__(self) -> str:
        where = "" if self.time is None else f" from {self.time:.2f} s on (frame {self.frame}, step {self.step})"
        return f"{self.stage}: {self.reason}{where}" + (f" in {self.audio}" if self.audio else "")


@dataclass
class Walk:
    """Recordings that both sides were walked through in one way: whole, or as streams of one chunk length."""

    bounds: Bounds
    layers: int
    frame_seconds: float
    chunk_ms: int | None
    live: bool
    block: int = 1
    """Encoder frames of a step."""
    accumulated: Stages = None
    alone: Stages = None
    decisions: Decisions = field(default_factory=Decisions)
    candidate_repeat: Repeat = field(default_factory=Repeat)
    reference_repeat: Repeat = field(default_factory=Repeat)
    frames: int = 0
    mismatch: str | None = None
    """Two different numbers of feature frames."""
    failed: list[Failure] = field(default_factory=list)
    """What ``stage_failures`` said of each recording that was absorbed."""
    pictures: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """|candidate - reference| of mel and encoder output, a float32 [frames, channels] of each block; of one recording.
    Channels are pooled to ``PICTURE_ROWS`` at most by their largest."""

    def __post_init__(self):
        self.accumulated = self.accumulated or Stages(self.bounds, alone=False)
        self.alone = self.alone or Stages(self.bounds, alone=True)

    @classmethod
    def like(cls, other: Walk) -> Walk:
        """An empty one, to add up others of this kind."""
        return cls(other.bounds, other.layers, other.frame_seconds, other.chunk_ms, other.live, other.block)

    @property
    def name(self) -> str:
        return f"stream, {self.chunk_ms} ms" if self.live else "recording"

    def absorb(self, other: Walk, audio: str) -> None:
        self.frames += other.frames
        self.accumulated.absorb(other.accumulated, audio)
        self.alone.absorb(other.alone, audio)
        self.decisions.absorb(other.decisions, audio)
        self.candidate_repeat.absorb(other.candidate_repeat)
        self.reference_repeat.absorb(other.reference_repeat)
        self.failed += [dataclasses.replace(f, audio=audio) for f in other.stage_failures()]

    def keep_picture(self, stage: str, difference: torch.Tensor) -> None:
        pooled = difference.abs().nan_to_num(0.0, 0.0, 0.0)
        if pooled.shape[1] > PICTURE_ROWS:
            pooled = torch.nn.functional.adaptive_max_pool1d(pooled[None], PICTURE_ROWS)[0]
        self.pictures.setdefault(stage, []).append(pooled.float().numpy())

    def stage_failures(self) -> list[Failure]:
        """Of the stages with figures, in the order in which sound passes them; of one recording."""
        found = []
        for stage in stage_names(self.layers):
            if stage == "log-mel" and self.mismatch:
                first = self.accumulated["log-mel"].first
                found.append(self._failure(stage, self.mismatch, first))
                continue
            for stages in (self.accumulated, self.alone):
                tally = stages.get(stage)
                if tally is not None and tally.exceeds:
                    found.append(self._failure(stage, _reason(tally, stages.alone), tally.first))
        return found

    def _failure(self, stage: str, reason: str, row: Row | None) -> Failure:
        if row is None:
            return Failure(stage, reason)
        return Failure(stage, reason, "", row.frame, row.step, round(row.frame * self.frame_seconds, 3))

    def _where(self, difference: dict | None) -> dict:
        if difference is None:
            return {}
        return {key: difference.get(key, "") for key in ("audio", "frame", "step", "time")}

    def failures(self) -> list[Failure]:
        """Everything that speaks against the candidate, the first stage first."""
        found = self.failed if self.failed else self.stage_failures()
        order = {name: i for i, name in enumerate(stage_names(self.layers))}
        found = sorted(found, key=lambda f: order[f.stage])
        d = self.decisions
        where = self._where(d.first_difference)
        if d.search_fault:
            found.append(Failure("tokens", d.search_fault, **where))
        elif d.token_errors > allowed(self.bounds.tokens, d.reference_tokens):
            found.append(Failure("tokens", _too_many(d.token_errors, d.reference_tokens, self.bounds.tokens), **where))
        if d.word_errors > allowed(self.bounds.words, d.reference_words):
            found.append(Failure("words", _too_many(d.word_errors, d.reference_words, self.bounds.words), **where))
        for side, repeat in (("candidate", self.candidate_repeat), ("reference", self.reference_repeat)):
            if repeat.stage:
                found.append(Failure(repeat.stage, f"two runs of the {side} differ by up to {repeat.max_error:.3g}"))
        return found


def allowed(bound: float, count: int) -> float:
    """Of so many tokens or words; where some may differ at all, one always may, however few there are."""
    return max(1.0, bound * count / 100) if bound else 0.0


def _too_many(errors: int, count: int, bound: float) -> str:
    return f"{errors:,} of {count:,} differ, {100 * errors / max(1, count):.2f} % > {bound:g} %"


def _reason(tally: Tally, alone: bool) -> str:
    given = " given the reference's input" if alone else ""
    if tally.candidate_not_finite or tally.reference_not_finite:
        side, count = "candidate", tally.candidate_not_finite
        if not count:
            side, count = "reference", tally.reference_not_finite
        return f"{count:,} {'value' if count == 1 else 'values'} of the {side} not finite{given}"
    if tally.percent > tally.bound:
        return f"error {tally.percent:.3g} % > {tally.bound:g} %{given}"
    return f"error {tally.over.percent:.3g} % > {ROW_FACTOR * tally.bound:g} % in one frame{given}"


# ---------------------------------------------------------------- walking


def walk(
    candidate: Probe,
    reference: NemoProbe,
    waveform: np.ndarray,
    bounds: Bounds,
    live: bool = False,
    transcript: Transcript | None = None,
    text: str | None = None,
    max_symbols: int | None = None,
) -> Walk:
    """One recording, float32 [samples] at 16 kHz, through both, at the chunk length that they are at.

    Parameters
    ----------
    live : in steps of one chunk, as a live stream; else in the candidate's own blocks, and both sides twice.
    transcript : what the candidate recognised in it; None has it recognised here.
    text : what was really said, if that is known.
    max_symbols : tokens that a frame may emit in the search of both; None is no limit.

    What the layers make of a block is dropped with the block; what is held for the whole recording are features,
    encoder output and small pictures of the differences.
    """
    seconds = candidate.recognizer.frame_seconds
    result = Walk(bounds, candidate.layers, seconds, candidate.chunk_ms, live)
    piece = round(candidate.chunk * seconds * SAMPLE_RATE) if live else None
    own, theirs = candidate.mel(waveform, piece), reference.mel(waveform)
    if not live:
        result.candidate_repeat.check("log-mel", own, candidate.mel(waveform))
        result.reference_repeat.check("log-mel", theirs, reference.mel(waveform))
    if len(own) != len(theirs):
        result.mismatch = f"{len(own)} frames, {len(theirs)} in the reference"
        length = min(len(own), len(theirs))
        own, theirs = own[:length], theirs[:length]
    result.frames = candidate.frames(len(own))
    if not result.frames:
        return result
    encoded, expected_encoded = _encode(candidate, reference, own, theirs, result)
    expected = reference.search(expected_encoded, len(waveform))
    if transcript is None:
        transcript = candidate.recognise(waveform, piece, encoded)
    _compare_search(candidate, reference, encoded, expected_encoded, transcript, expected, result, max_symbols)
    count_tokens(result.decisions, transcript.tokens, expected.tokens)
    count_words(result.decisions, transcript.text, expected.text, text)
    return result


def _encode(candidate: Probe, reference: NemoProbe, own: torch.Tensor, theirs: torch.Tensor, result: Walk):
    """Every stage up to the encoder output, of features [features, mels]; both outputs [frames, width]."""
    total, factor = result.frames, candidate.factor
    stages = ["subsampling", *(f"layer {index}" for index in range(candidate.layers))]
    largest = result.block = candidate.chunk if result.live else candidate.block_for(total)
    state, state_alone, state_again = (candidate.new_state(largest) for _ in range(3))
    state_reference, state_reference_again = (reference.new_state(largest) for _ in range(2))
    outputs, first = [], 0
    while first < total:
        block = candidate.chunk if result.live else candidate.block_for(total - first)
        count = min(block, total - first)
        after = first + count
        frames = np.arange(first, after)
        steps = frames // largest

        expected, made, made_alone = [], [], []  # by stage
        out_expected = reference.step(theirs, first, block, state_reference, _record(expected))
        out = candidate.step(own, first, block, state, _record(made))
        out_alone = candidate.step(theirs, first, block, state_alone, _feed(expected, made_alone))

        # a block's features are those that complete its frames
        begin, end = (min(len(own), max(0, factor * (f - 1) + 1)) if f < total else len(own) for f in (first, after))
        by_frame = -(-np.arange(begin, end) // factor)
        result.accumulated["log-mel"].add(own[begin:end], theirs[begin:end], by_frame, by_frame // largest)
        for index, stage in enumerate(stages):
            result.accumulated[stage].add(made[index], expected[index], frames, steps)
            result.alone[stage].add(made_alone[index], expected[index], frames, steps)
        result.accumulated["encoder output"].add(out, out_expected, frames, steps)
        if candidate.projects:
            result.alone["encoder output"].add(out_alone, out_expected, frames, steps)

        if result.live:
            if after < total:  # behind its end a recording has no caches
                held = reference.caches(state_reference)
                _add_caches(result.accumulated, candidate.caches(state), held, after, largest)
                _add_caches(result.alone, candidate.caches(state_alone), held, after, largest)
        else:
            result.keep_picture("log-mel", own[begin:end] - theirs[begin:end])
            result.keep_picture("encoder output", out - out_expected)
            for repeat, probe, mel, other, seen, output in (
                (result.candidate_repeat, candidate, own, state_again, made, out),
                (result.reference_repeat, reference, theirs, state_reference_again, expected, out_expected),
            ):
                seen_again = []
                output_again = probe.step(mel, first, block, other, _record(seen_again))
                for stage, one, again in zip(stages, seen, seen_again, strict=True):
                    repeat.check(stage, one, again)
                repeat.check("encoder output", output, output_again)
        outputs.append((out, out_expected))
        first = after
    return (torch.cat(parts) for parts in zip(*outputs, strict=True))


def _record(seen: list[torch.Tensor]):
    def observe(index: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.to("cpu", torch.float32, copy=True))
        return x

    return observe


def _feed(given: list[torch.Tensor], seen: list[torch.Tensor]):
    """Record what each layer makes of the reference's input, and give the next one the reference's as well."""

    def observe(index: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.to("cpu", torch.float32, copy=True))
        return given[index].to(x)

    return observe


def _add_caches(stages: Stages, own: list, theirs: list, position: int, block: int) -> None:
    """What every layer keeps after the step that ends at frame ``position``: rows of the last frames before it."""
    for index, (mine, expected) in enumerate(zip(own, theirs, strict=True)):
        for name, a, b in zip(CACHES, mine, expected, strict=True):
            count = min(position, len(b))
            frames = np.arange(position - count, position)
            steps = np.full(count, (position - 1) // block)
            stages[f"{name} of layer {index}"].add(a[len(a) - count :], b[len(b) - count :], frames, steps)


# ---------------------------------------------------------------- search


def _compare_search(candidate, reference, encoded, expected_encoded, transcript, expected, result: Walk, max_symbols):
    """Prediction network, joint network along the reference's path, and what became of its decisions."""
    tokens = expected.tokens
    predicted, expected_predicted = (probe.predict([t.id for t in tokens]) for probe in (candidate, reference))
    after = np.array([0, *(token.frame for token in tokens)])  # the frame of the last token seen
    result.accumulated["prediction network"].add(predicted, expected_predicted, after, after // result.block)
    path, own_path = (
        Path.of(side.tokens, result.frames, reference.blank, max_symbols) for side in (expected, transcript)
    )
    along = path.frames, path.symbols
    first = 0
    for ours, alone, theirs in zip(
        candidate.joint(encoded, predicted, *along),
        candidate.joint(expected_encoded, expected_predicted, *along),
        reference.joint(expected_encoded, expected_predicted, *along),
        strict=True,
    ):
        frames = path.frames[first : first + len(theirs)]
        result.accumulated["joint"].add(ours, theirs, frames, frames // result.block)
        result.alone["joint"].add(alone, theirs, frames, frames // result.block)
        decide(result.decisions, path, own_path, first, ours, theirs, reference.spell)
        first += len(theirs)
    if difference := result.decisions.first_difference:
        difference["time"] = round(difference["frame"] * result.frame_seconds, 3)
        difference["step"] = difference["frame"] // result.block
