"""What the errors of a candidate did to the decisions of the search: tokens, margins, words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..transcript import Token

BINS = np.logspace(-9, 3, 49)  # of margins and errors in nats, four to a decade
SLACK = 1e-3  # nats by which a choice may seem not to be the best, since the distributions are computed in other blocks


@dataclass
class Decisions:
    """What the errors did to the tokens and words of one recording, or of several."""

    steps: int = 0
    """Decisions of the reference's search: a token or blank."""
    reference_tokens: int = 0
    token_errors: int = 0
    """Edit distance between the tokens of both, each an id and its frame."""
    smallest_margin: float = np.inf
    """Between the log-probabilities of the reference's choice and the next best, in nats."""
    largest_error: float = 0.0
    """Of any log-probability at any step, in nats."""
    safety: float = np.inf
    """Least margin / (2 * error) of a step: over 1, no choice can differ."""
    undecided: int = 0
    """Steps where it is not over 1."""
    margins: np.ndarray = field(default_factory=lambda: np.zeros(len(BINS) + 1, np.int64))
    errors: np.ndarray = field(default_factory=lambda: np.zeros(len(BINS) + 1, np.int64))
    """Steps by margin and by largest error: below ``BINS[0]``, between two, above the last."""
    word_errors: int = 0
    reference_words: int = 0
    transcript_words: int = 0
    """Of the recordings that came with a transcript, here and below."""
    candidate_transcript_errors: int = 0
    reference_transcript_errors: int = 0
    first_difference: dict | None = None
    search_fault: str | None = None
    """A choice that the candidate's own joint network does not prefer."""

    def absorb(self, other: Decisions, audio: str) -> None:
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
        """Of the reference's; where the candidate says many more, there may be more errors than tokens."""
        return max(0, self.reference_tokens - self.token_errors)

    @property
    def token_percent(self) -> float:
        return 100 * self.token_errors / max(1, self.reference_tokens)

    @property
    def word_percent(self) -> float:
        return 100 * self.word_errors / max(1, self.reference_words)

    def as_dict(self) -> dict:
        keys = ("margins", "errors")
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in keys}
        plain |= {"equal_tokens": self.equal_tokens, "token_error_percent": self.token_percent}
        plain |= {"word_error_percent": self.word_percent}
        if self.transcript_words:
            for side in ("candidate", "reference"):
                errors = plain[f"{side}_transcript_errors"]
                plain[f"{side}_wer_percent"] = 100 * errors / self.transcript_words
        return plain


@dataclass(frozen=True)
class Path:
    """The decisions of a greedy search, int [steps] each."""

    frames: np.ndarray
    symbols: np.ndarray
    """Tokens emitted before."""
    chosen: np.ndarray
    """A token, or blank, which ends the frame."""

    @classmethod
    def of(cls, tokens: tuple[Token, ...], frames: int, blank: int, max_symbols: int | None) -> Path:
        steps, emitted = [], 0
        for frame in range(frames):
            in_frame = 0
            while emitted < len(tokens) and tokens[emitted].frame == frame:
                steps.append((frame, emitted, tokens[emitted].id))
                emitted += 1
                in_frame += 1
            if in_frame != max_symbols:
                steps.append((frame, emitted, blank))
        return cls(*np.array(steps, dtype=np.int64).reshape(-1, 3).T.copy())

    def first_difference(self, other: Path) -> int | None:
        """The first step at which ``other`` chose something else.  Until then both are at the same frame and symbol."""
        common = min(len(self.chosen), len(other.chosen))
        differs = np.flatnonzero(self.chosen[:common] != other.chosen[:common])
        return int(differs[0]) if len(differs) else None


def decide(
    decisions: Decisions,
    path: Path,
    own_path: Path,
    first: int,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    spell: Callable[[int], str],
) -> None:
    """Add the steps ``first`` .. of the reference's ``path``, where the log-probabilities float64 [steps, vocabulary]
    of candidate and reference are ``ours`` and ``theirs``; ``spell`` turns an id into what is shown of it."""
    rows = slice(first, first + len(theirs))
    margins = _margins(theirs, path.chosen[rows])
    errors = (ours - theirs).abs().nan_to_num(np.inf, np.inf, np.inf).amax(1).numpy()
    safety = np.divide(margins, 2 * errors, out=np.full(len(margins), np.inf), where=errors > 0)
    decisions.steps += len(theirs)
    decisions.smallest_margin = min(decisions.smallest_margin, float(margins.min()))
    decisions.largest_error = max(decisions.largest_error, float(errors.max()))
    decisions.safety = min(decisions.safety, float(safety.min()))
    decisions.undecided += int((safety <= 1).sum())
    decisions.margins = decisions.margins + _histogram(margins)
    decisions.errors = decisions.errors + _histogram(errors)
    differs = path.first_difference(own_path)
    if differs is None or not rows.start <= differs < rows.stop:
        return
    at, chosen = differs - first, int(own_path.chosen[differs])
    own_margin = float(_margins(ours[at : at + 1], own_path.chosen[differs : differs + 1])[0])
    decisions.first_difference = {
        "frame": int(path.frames[differs]),
        "reference": spell(int(path.chosen[differs])),
        "candidate": spell(chosen),
        "reference_margin": float(margins[at]),
        "candidate_margin": own_margin,
        "error": float(errors[at]),
    }
    if own_margin < -(SLACK + errors[at]):
        decisions.search_fault = (
            f"the search chose {spell(chosen)}, {-own_margin:.3g} nats behind what the candidate's own joint prefers"
        )


def count_tokens(decisions: Decisions, own: tuple[Token, ...], expected: tuple[Token, ...]) -> None:
    from rapidfuzz.distance import Levenshtein

    said, wanted = ([(token.id, token.frame) for token in tokens] for tokens in (own, expected))
    decisions.reference_tokens += len(wanted)
    decisions.token_errors += Levenshtein.distance(said, wanted)


def count_words(decisions: Decisions, own: str, expected: str, text: str | None) -> None:
    """Word errors of the candidate's text against the reference's, and of both against what was said, if it is known.

    The first are of the words as they are spelled, the second without case and punctuation.
    """
    from rapidfuzz.distance import Levenshtein

    decisions.reference_words += len(expected.split())
    decisions.word_errors += Levenshtein.distance(own.split(), expected.split())
    if text is None:
        return
    spoken = _plain_words(text)
    decisions.transcript_words += len(spoken)
    decisions.candidate_transcript_errors += Levenshtein.distance(_plain_words(own), spoken)
    decisions.reference_transcript_errors += Levenshtein.distance(_plain_words(expected), spoken)


def _plain_words(text: str) -> list[str]:
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def _margins(distributions: torch.Tensor, chosen: np.ndarray) -> np.ndarray:
    """By how many nats each choice is ahead of the best other one; negative where it was not the best."""
    index = torch.from_numpy(chosen)[:, None]
    others = distributions.scatter(1, index, -torch.inf).amax(1)
    return (distributions.gather(1, index)[:, 0] - others).numpy()


def _histogram(values: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(BINS, values, side="right"), minlength=len(BINS) + 1)
