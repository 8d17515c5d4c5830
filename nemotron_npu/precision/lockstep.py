"""Process a recording with candidate and reference in lockstep, block by block, and measure every stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..audio import SAMPLE_RATE
from ..transcript import Transcript
from .probes import CACHES, Caches, NemoProbe, Observer, Probe
from .stages import LockstepRun, Repeat, StageTallies
from .tokens import DecodingPath, Sides, count_tokens, count_words, measure_decisions
from .tolerances import Tolerances


@dataclass(frozen=True)
class Sample:
    """A recording to compare."""

    waveform: np.ndarray
    """float32 [samples], mono, 16 kHz."""
    transcript: Transcript | None = None
    """The candidate's transcript; None transcribes the waveform during the comparison."""
    text: str | None = None
    """The spoken words, if they are known."""
    max_symbols: int | None = None
    """Maximum number of tokens of a frame in the decoding of both sides; None is no limit."""


@dataclass(frozen=True)
class Probes:
    """Both sides of a comparison."""

    candidate: Probe
    reference: NemoProbe


def run_lockstep(probes: Probes, sample: Sample, tolerances: Tolerances, *, live: bool = False) -> LockstepRun:
    """Process one recording with both sides at the chunk length that they are set to.

    ``live`` takes steps of one chunk, as a live stream does.  Otherwise the steps are the candidate's own blocks, and
    both sides run twice.  The outputs of the layers are dropped after each block; features, encoder output and small
    pictures of the differences are kept for the whole recording.
    """
    candidate, reference = probes.candidate, probes.reference
    seconds = candidate.recognizer.frame_seconds
    run = LockstepRun(tolerances, candidate.layers, seconds, candidate.chunk_ms, live)
    block_samples = round(candidate.chunk * seconds * SAMPLE_RATE) if live else None
    features = _features(probes, sample.waveform, block_samples, run)
    run.frames = candidate.frames(len(features.candidate))
    if not run.frames:
        return run
    encoded = _EncoderLockstep(probes, features, run).encode()
    expected = reference.decode(encoded.reference, len(sample.waveform))
    transcript = sample.transcript
    if transcript is None:
        transcript = candidate.transcribe(sample.waveform, block_samples, encoded.candidate)
    tokens = Sides(transcript.tokens, expected.tokens)
    _compare_decoding(probes, encoded, tokens, run, sample.max_symbols)
    count_tokens(run.decisions, tokens)
    count_words(run.decisions, Sides(transcript.text, expected.text), sample.text)
    return run


def _features(probes: Probes, waveform: np.ndarray, block_samples: int | None, run: LockstepRun) -> Sides[torch.Tensor]:
    """Return the log-mel features [features, mels] of both sides, cut to the shorter one."""
    own = probes.candidate.mel(waveform, block_samples)
    theirs = probes.reference.mel(waveform)
    if not run.live:
        run.candidate_repeat.check("log-mel", own, probes.candidate.mel(waveform))
        run.reference_repeat.check("log-mel", theirs, probes.reference.mel(waveform))
    if len(own) != len(theirs):
        run.mismatch = f"{len(own)} frames, {len(theirs)} in the reference"
    length = min(len(own), len(theirs))
    return Sides(own[:length], theirs[:length])


# ---------------------------------------------------------------- encoder


@dataclass(frozen=True)
class _Block:
    """Encoder frames that are computed in one step."""

    range: range
    """Whole chunks, which may go past the end of the recording."""
    frames: np.ndarray
    """int [frames]: those of the recording."""
    steps: np.ndarray
    """int [frames]: the number of the step."""

    @property
    def after(self) -> int:
        """The first frame after the block."""
        return self.range.start + len(self.frames)


class _EncoderLockstep:
    """Encode a recording with both sides, and measure every stage up to the encoder output."""

    def __init__(self, probes: Probes, features: Sides[torch.Tensor], run: LockstepRun) -> None:
        candidate, reference = probes.candidate, probes.reference
        self.probes, self.features, self.run = probes, features, run
        self.stages = ["subsampling", *(f"layer {index}" for index in range(candidate.layers))]
        self.largest = candidate.chunk if run.live else candidate.block_for(run.frames)
        run.block = self.largest
        self.states = Sides(candidate.new_state(self.largest), reference.new_state(self.largest))
        self.states_repeated = Sides(candidate.new_state(self.largest), reference.new_state(self.largest))
        self.state_alone = candidate.new_state(self.largest)

    def encode(self) -> Sides[torch.Tensor]:
        """Return both encoder outputs [frames, width]."""
        outputs = [self._encode_block(block) for block in self._blocks()]
        return Sides(
            torch.cat([output.candidate for output in outputs]), torch.cat([output.reference for output in outputs])
        )

    def _blocks(self) -> Iterator[_Block]:
        first, total = 0, self.run.frames
        while first < total:
            size = self.largest if self.run.live else self.probes.candidate.block_for(total - first)
            frames = np.arange(first, min(first + size, total))
            yield _Block(range(first, first + size), frames, frames // self.largest)
            first += len(frames)

    def _encode_block(self, block: _Block) -> Sides[torch.Tensor]:
        """Compute one block on both sides, and measure it."""
        candidate, reference = self.probes.candidate, self.probes.reference
        own, theirs = self.features.candidate, self.features.reference
        seen: Sides[list[torch.Tensor]] = Sides([], [])  # of each stage
        seen_alone: list[torch.Tensor] = []
        expected = reference.step(theirs, block.range, self.states.reference, _record(seen.reference))
        out = candidate.step(own, block.range, self.states.candidate, _record(seen.candidate))
        alone = candidate.step(theirs, block.range, self.state_alone, _feed(seen.reference, seen_alone))
        outputs = Sides(out, expected)
        mel_difference = self._measure_features(block)
        for index, stage in enumerate(self.stages):
            given = seen.reference[index]
            self.run.accumulated[stage].add(seen.candidate[index], given, block.frames, block.steps)
            self.run.alone[stage].add(seen_alone[index], given, block.frames, block.steps)
        self.run.accumulated["encoder output"].add(out, expected, block.frames, block.steps)
        if candidate.projects:
            self.run.alone["encoder output"].add(alone, expected, block.frames, block.steps)
        if self.run.live:
            self._measure_caches(block)
        else:
            self.run.keep_picture("log-mel", mel_difference)
            self.run.keep_picture("encoder output", out - expected)
            self._repeat(block, seen, outputs)
        return outputs

    def _measure_features(self, block: _Block) -> torch.Tensor:
        """Measure the features that complete the block's frames, and return their difference [features, mels]."""
        own, theirs = self.features.candidate, self.features.reference
        factor = self.probes.candidate.factor

        def features_before(frame: int) -> int:
            if frame >= self.run.frames:
                return len(own)
            return min(len(own), max(0, factor * (frame - 1) + 1))

        begin, end = features_before(block.range.start), features_before(block.after)
        frames = np.ceil(np.arange(begin, end) / factor).astype(np.int64)
        self.run.accumulated["log-mel"].add(own[begin:end], theirs[begin:end], frames, frames // self.largest)
        return own[begin:end] - theirs[begin:end]

    def _measure_caches(self, block: _Block) -> None:
        """Measure what every layer keeps after the step; at the end of a recording there are no caches."""
        if block.after >= self.run.frames:
            return
        candidate, reference = self.probes.candidate, self.probes.reference
        expected = reference.caches(self.states.reference)
        for stages, state in (
            (self.run.accumulated, self.states.candidate),
            (self.run.alone, self.state_alone),
        ):
            _add_caches(stages, Sides(candidate.caches(state), expected), block.after, self.largest)

    def _repeat(self, block: _Block, seen: Sides[list[torch.Tensor]], outputs: Sides[torch.Tensor]) -> None:
        """Compute the block again on both sides: each has to agree with itself."""
        for side, repeat in (("candidate", self.run.candidate_repeat), ("reference", self.run.reference_repeat)):
            seen_again: list[torch.Tensor] = []
            output = getattr(self.probes, side).step(
                getattr(self.features, side), block.range, getattr(self.states_repeated, side), _record(seen_again)
            )
            self._check_repeat(repeat, getattr(seen, side), seen_again)
            repeat.check("encoder output", getattr(outputs, side), output)

    def _check_repeat(self, repeat: Repeat, seen: list[torch.Tensor], again: list[torch.Tensor]) -> None:
        for stage, one, other in zip(self.stages, seen, again, strict=True):
            repeat.check(stage, one, other)


def _record(seen: list[torch.Tensor]) -> Observer:
    """Return an observer that copies the input of each layer."""

    def observe(index: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.to("cpu", torch.float32, copy=True))
        return x

    return observe


def _feed(given: list[torch.Tensor], seen: list[torch.Tensor]) -> Observer:
    """Return an observer that also replaces the input of each layer with the reference's."""

    def observe(index: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.to("cpu", torch.float32, copy=True))
        return given[index].to(x)

    return observe


def _add_caches(stages: StageTallies, caches: Sides[Caches], position: int, block: int) -> None:
    """Add the rows that every layer keeps after the step that ends at frame ``position``."""
    for index, (own, expected) in enumerate(zip(caches.candidate, caches.reference, strict=True)):
        for name, a, b in zip(CACHES, own, expected, strict=True):
            count = min(position, len(b))
            frames = np.arange(position - count, position)
            steps = np.full(count, (position - 1) // block)
            stages[f"{name} of layer {index}"].add(a[len(a) - count :], b[len(b) - count :], frames, steps)


# ---------------------------------------------------------------- decoding


def _compare_decoding(
    probes: Probes,
    encoded: Sides[torch.Tensor],
    tokens: Sides[tuple],
    run: LockstepRun,
    max_symbols: int | None,
) -> None:
    """Measure the prediction network, the joint network along the reference's path, and the decisions."""
    candidate, reference = probes.candidate, probes.reference
    ids = [token.id for token in tokens.reference]
    predicted = Sides(candidate.predict(ids), reference.predict(ids))
    last_frames = np.array([0, *(token.frame for token in tokens.reference)])  # of the last token seen
    run.accumulated["prediction network"].add(
        predicted.candidate, predicted.reference, last_frames, last_frames // run.block
    )
    paths = Sides(
        DecodingPath.from_tokens(tokens.candidate, run.frames, reference.blank, max_symbols),
        DecodingPath.from_tokens(tokens.reference, run.frames, reference.blank, max_symbols),
    )
    path = paths.reference.frames, paths.reference.symbols
    first = 0
    for ours, alone, theirs in zip(
        candidate.joint(encoded.candidate, predicted.candidate, *path),
        candidate.joint(encoded.reference, predicted.reference, *path),
        reference.joint(encoded.reference, predicted.reference, *path),
        strict=True,
    ):
        frames = paths.reference.frames[first : first + len(theirs)]
        run.accumulated["joint"].add(ours, theirs, frames, frames // run.block)
        run.alone["joint"].add(alone, theirs, frames, frames // run.block)
        measure_decisions(run.decisions, paths, first, Sides(ours, theirs), reference.spell)
        first += len(theirs)
    difference = run.decisions.first_difference
    if difference:
        difference["time"] = round(difference["frame"] * run.frame_seconds, 3)
        difference["step"] = difference["frame"] // run.block
