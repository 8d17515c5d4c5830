"""Decisions of the greedy decoding of both sides: tokens, their margins, and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from ..evaluation.wer import normalize, word_errors
from ..transcript import Token

T = TypeVar("T")

BINS = np.logspace(-9, 3, 49)  # edges of histograms of margins and errors in nats, four to a decade
SLACK = 1e-3  # nats by which the best choice may seem second, since distributions are computed in other block sizes
HISTOGRAMS = ("margins", "errors")


@dataclass(frozen=True)
class Sides(Generic[T]):
    """A value of each side."""

    candidate: T
    reference: T


def _empty_histogram() -> np.ndarray:
    return np.zeros(len(BINS) + 1, np.int64)


@dataclass
class Decisions:
    """The effect of the errors on the tokens and words of one recording, or of several."""

    steps: int = 0
    """Decisions of the reference's decoding: a token or blank."""
    reference_tokens: int = 0
    token_errors: int = 0
    """Edit distance between the tokens of both, each an id and its frame."""
    smallest_margin: float = np.inf
    """Between the log-probabilities of the reference's choice and the next best, in nats."""
    largest_error: float = 0.0
    """Of any log-probability at any step, in nats."""
    safety: float = np.inf
    """Smallest margin / (2 * error) of a step: over 1, no choice can differ."""
    undecided: int = 0
    """Steps where the safety is not over 1."""
    margins: np.ndarray = field(default_factory=_empty_histogram)
    errors: np.ndarray = field(default_factory=_empty_histogram)
    """Steps by margin and by largest error: below ``BINS[0]``, between two edges, above the last."""
    word_errors: int = 0
    reference_words: int = 0
    transcript_words: int = 0
    """Normalized words of the recordings that have a transcript; the next two count the errors against them."""
    candidate_transcript_errors: int = 0
    reference_transcript_errors: int = 0
    written_words: int = 0
    """The same words as they are written, and the errors against them."""
    candidate_written_errors: int = 0
    reference_written_errors: int = 0
    first_difference: dict | None = None
    search_fault: str | None = None
    """A choice that the candidate's own joint network does not prefer."""

    def absorb(self, other: Decisions, audio: str) -> None:
        """Add the decisions of the recording ``audio``."""
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.name in ("smallest_margin", "safety"):
                value = min(mine, theirs)
            elif f.name == "largest_error":
                value = max(mine, theirs)
            elif f.name == "first_difference":
                value = mine or (theirs and {"audio": audio, **theirs})
            elif f.name == "search_fault":
                value = mine or (theirs and f"{audio}: {theirs}")
            else:
                value = mine + theirs
            setattr(self, f.name, value)

    @property
    def equal_tokens(self) -> int:
        """The reference's tokens that are equal; a candidate with many more tokens has more errors than there are."""
        return max(0, self.reference_tokens - self.token_errors)

    @property
    def token_percent(self) -> float:
        """Token errors in percent of the reference's tokens."""
        return 100 * self.token_errors / max(1, self.reference_tokens)

    @property
    def word_percent(self) -> float:
        """Word errors in percent of the reference's words."""
        return 100 * self.word_errors / max(1, self.reference_words)

    def transcript_percent(self) -> Sides[float]:
        """Return both word error rates against the transcripts, in the row "normalized" of ``--wer_report``."""
        scale = 100 / max(1, self.transcript_words)
        return Sides(scale * self.candidate_transcript_errors, scale * self.reference_transcript_errors)

    def written_percent(self) -> Sides[float]:
        """Return both word error rates against the transcripts, in the row "as written" of ``--wer_report``."""
        scale = 100 / max(1, self.written_words)
        return Sides(scale * self.candidate_written_errors, scale * self.reference_written_errors)

    def as_dict(self) -> dict:
        """Return the decisions as ``report.schema.json`` describes them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in HISTOGRAMS}
        plain["equal_tokens"] = self.equal_tokens
        plain["token_error_percent"] = self.token_percent
        plain["word_error_percent"] = self.word_percent
        if self.transcript_words:
            for name, rates in (("wer", self.transcript_percent()), ("written_wer", self.written_percent())):
                plain[f"candidate_{name}_percent"] = rates.candidate
                plain[f"reference_{name}_percent"] = rates.reference
        return plain


@dataclass(frozen=True)
class DecodingPath:
    """The decisions of a greedy decoding, int [steps] each."""

    frames: np.ndarray
    symbols: np.ndarray
    """Number of tokens emitted before."""
    chosen: np.ndarray
    """A token, or blank, which ends the frame."""

    @classmethod
    def from_tokens(
        cls, tokens: tuple[Token, ...], frames: int, blank: int, max_symbols: int | None = None
    ) -> DecodingPath:
        """Reconstruct the decisions that emitted ``tokens``; after ``max_symbols`` a frame ends without a blank."""
        steps: list[tuple[int, int, int]] = []
        emitted = 0
        for frame in range(frames):
            in_frame = 0
            while emitted < len(tokens) and tokens[emitted].frame == frame:
                steps.append((frame, emitted, tokens[emitted].id))
                emitted += 1
                in_frame += 1
            if in_frame != max_symbols:
                steps.append((frame, emitted, blank))
        return cls(*np.array(steps, dtype=np.int64).reshape(-1, 3).T.copy())

    def first_difference(self, other: DecodingPath) -> int | None:
        """Return the first step with another choice; up to it, both paths are at the same frames and symbols."""
        common = min(len(self.chosen), len(other.chosen))
        differs = np.flatnonzero(self.chosen[:common] != other.chosen[:common])
        return int(differs[0]) if len(differs) else None


def measure_decisions(
    decisions: Decisions,
    paths: Sides[DecodingPath],
    first: int,
    distributions: Sides[torch.Tensor],
    spell: Callable[[int], str],
) -> None:
    """Add the steps from ``first`` on of the reference's path.

    ``distributions``: log-probabilities float64 [steps, vocabulary + blank] of these steps.  ``spell`` returns the
    text that stands for a token in messages.
    """
    ours, theirs = distributions.candidate, distributions.reference
    rows = slice(first, first + len(theirs))
    margins = _margins(theirs, paths.reference.chosen[rows])
    errors = (ours - theirs).abs().nan_to_num(np.inf, np.inf, np.inf).amax(1).numpy()
    safety = np.divide(margins, 2 * errors, out=np.full(len(margins), np.inf), where=errors > 0)
    decisions.steps += len(theirs)
    decisions.smallest_margin = min(decisions.smallest_margin, float(margins.min()))
    decisions.largest_error = max(decisions.largest_error, float(errors.max()))
    decisions.safety = min(decisions.safety, float(safety.min()))
    decisions.undecided += int((safety <= 1).sum())
    decisions.margins = decisions.margins + _histogram(margins)
    decisions.errors = decisions.errors + _histogram(errors)
    differs = paths.reference.first_difference(paths.candidate)
    if differs is None or not rows.start <= differs < rows.stop:
        return
    at = differs - first
    chosen = paths.candidate.chosen[differs : differs + 1]
    name = spell(int(chosen[0]))
    own_margin = float(_margins(ours[at : at + 1], chosen)[0])
    decisions.first_difference = {
        "frame": int(paths.reference.frames[differs]),
        "reference": spell(int(paths.reference.chosen[differs])),
        "candidate": name,
        "reference_margin": float(margins[at]),
        "candidate_margin": own_margin,
        "error": float(errors[at]),
    }
    if own_margin < -(SLACK + errors[at]):
        decisions.search_fault = (
            f"decoding chose {name}, {-own_margin:.3g} nats below the best choice of the candidate's own joint network"
        )


def count_tokens(decisions: Decisions, tokens: Sides[tuple[Token, ...]]) -> None:
    """Add the tokens of one recording."""
    ours = [(token.id, token.frame) for token in tokens.candidate]
    theirs = [(token.id, token.frame) for token in tokens.reference]
    decisions.reference_tokens += len(theirs)
    decisions.token_errors += Levenshtein.distance(ours, theirs)


def count_words(decisions: Decisions, texts: Sides[str], spoken: str | None) -> None:
    """Add the words of one recording.

    The candidate's words are compared with the reference's as they are written.  Those of both sides are compared with
    ``spoken``, the transcript of the recording if it is known, as ``--wer_report`` does: as written and normalized.
    """
    errors = word_errors(texts.reference, texts.candidate)
    decisions.reference_words += errors.length
    decisions.word_errors += errors.count
    if spoken is None:
        return
    own = word_errors(spoken, texts.candidate)
    decisions.written_words += own.length
    decisions.candidate_written_errors += own.count
    decisions.reference_written_errors += word_errors(spoken, texts.reference).count
    spoken = normalize(spoken)
    own = word_errors(spoken, normalize(texts.candidate))
    decisions.transcript_words += own.length
    decisions.candidate_transcript_errors += own.count
    decisions.reference_transcript_errors += word_errors(spoken, normalize(texts.reference)).count


def _margins(distributions: torch.Tensor, chosen: np.ndarray) -> np.ndarray:
    """Return by how many nats each choice is ahead of the best other one; negative where it was not the best."""
    index = torch.from_numpy(chosen)[:, None]
    others = distributions.scatter(1, index, -torch.inf).amax(1)
    return (distributions.gather(1, index)[:, 0] - others).numpy()


def _histogram(values: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(BINS, values, side="right"), minlength=len(BINS) + 1)
