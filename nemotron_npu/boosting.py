"""Context biasing: phrases that the decoder prefers, as with NeMo's boosting tree.

The phrases form a trie of tokens in which each token of a phrase has a score.  While the decoder spells a phrase, the
next token of it gets its score; when it leaves the phrase unfinished, the scores so far are subtracted again (the
failure links of Aho and Corasick, 1975).  Whether a frame emits a token or blank is never changed, only which token.
Follows NeMo 2.7.3: ``context_graph_universal.py``, ``boosting_graph_batched.py``, ``ngram_lm_batched.py``.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .containers import open_regular
from .device import import_torch
from .errors import InputError, SetupError

if TYPE_CHECKING:
    import torch

SCORE = 1.0  # of a phrase's first token: NeMo's context_score
DEPTH = 2.0  # times as much for the later ones, plus log of their place: NeMo's depth_scaling
MAX_PHRASES = 100_000  # they take 5 s and 170 MB
MAX_CHARACTERS = 1 << 24
ALPHA = 1.0  # weight of the tree against the model: NeMo's boosting_tree_alpha


@dataclass(frozen=True)
class Phrase:
    """Words to prefer."""

    text: str
    """As the model writes them: case and punctuation matter."""
    score: float = SCORE
    line: int = 0
    """Line number in the file."""


def read_phrases(path: str | Path) -> list[Phrase]:
    """Read one phrase per line, as in NeMo's ``key_phrases_file``, optionally with a tab and its score (else SCORE).

    Empty lines are skipped; the last score of a repeated phrase counts.
    Raises SetupError for a file that cannot be read, holds no phrase or too much, and for a score that is no positive
    number.
    """
    try:
        with open(open_regular(str(path)), encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (InputError, OSError) as error:
        raise SetupError(f"--boost_words {error}") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"--boost_words {path}: is not UTF-8 text (expected one phrase on each line)") from error
    lines = text.splitlines()
    if len(text) > MAX_CHARACTERS or len(lines) > MAX_PHRASES:
        problem = f"has more than {MAX_PHRASES:,} lines or {MAX_CHARACTERS:,} characters"
        raise SetupError(f"--boost_words {path}", problem)
    phrases: dict[str, Phrase] = {}
    for number, line in enumerate(lines, 1):
        text, _, score = line.partition("\t")
        text, score = " ".join(text.split()), score.strip()
        if not text:
            continue
        try:
            value = float(score) if score else SCORE
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise SetupError(
                f"--boost_words {path}, line {number}: {score!r} is not a score (expected a number above 0)"
            )
        phrases[text] = Phrase(text, value, number)
    if not phrases:
        raise SetupError(f"--boost_words {path}: has no phrases (expected one on each line)")
    return list(phrases.values())


def digest(phrases: list[Phrase], alpha: float) -> str | None:
    """Return a digest of phrases, scores and weight, as ``12 phrases, alpha 1, sha256 0f3a...``; None without phrases.

    Results of equal digests were made with the same phrases.
    """
    if not phrases:
        return None
    lines = "".join(f"{phrase.text}\t{phrase.score!r}\n" for phrase in phrases)
    count = f"{len(phrases)} phrase{'s' * (len(phrases) > 1)}"
    return f"{count}, alpha {alpha:g}, sha256 {hashlib.sha256(lines.encode()).hexdigest()[:16]}"


def spell(phrases: list[Phrase], encode: Callable, unknown: int) -> tuple[list[tuple[list[int], float]], list[Phrase]]:
    """Return (tokens, score) of each phrase, and the phrases with a letter outside the vocabulary (``unknown``)."""
    spelled = [(phrase, encode(phrase.text)) for phrase in phrases]
    return (
        [(tokens, phrase.score) for phrase, tokens in spelled if unknown not in tokens],
        [phrase for phrase, tokens in spelled if unknown in tokens],
    )


class Node:
    """A state of the tree: the beginning of a phrase that has just been spelled."""

    def __init__(self) -> None:
        self.next: dict[int, Node] = {}
        self.fail = self
        """The longest beginning of a phrase that ends as this one does."""
        self.gain = 0.0
        """Score of the token that leads here."""
        self.total = 0.0
        """Scores from the root to here."""
        self.is_end = False
        """Whether a phrase is complete here: it keeps its scores."""
        self.scores: torch.Tensor | None = None
        """Cache of ``BoostingTree.scores``."""


class BoostingTree:
    """The trie of some phrases, and the scores of all tokens in each of its states.

    ``phrases`` are the tokens and the score of each phrase; ``size`` is the number of tokens in the vocabulary, without
    blank; ``alpha`` is the weight of the scores; ``device`` is where the decoder needs them.
    """

    def __init__(self, phrases: list[tuple[list[int], float]], size: int, alpha: float, device: torch.device) -> None:
        self.alpha = np.float32(alpha)
        self.device = device
        self.root = Node()
        for tokens, score in phrases:
            self._add(tokens, score)
        self._link()
        self.at_root = np.zeros(size, np.float32)
        for token, node in self.root.next.items():
            self.at_root[token] = node.gain

    def _add(self, tokens: list[int], score: float) -> None:
        """ContextGraph.build: a token that phrases share has the larger score."""
        node = self.root
        for depth, token in enumerate(tokens):
            if token in node.next:
                gain = max(score, node.next[token].gain)
            else:
                gain = score * DEPTH + math.log(depth + 1) if depth else score
                node.next[token] = Node()
            child = node.next[token]
            child.gain, child.total = gain, node.total + gain
            node = child
        node.is_end = True

    def _link(self) -> None:
        """Fill the failure links, breadth first."""
        waiting = deque(self.root.next.values())
        for node in waiting:
            node.fail = self.root
        while waiting:
            parent = waiting.popleft()
            for token, node in parent.next.items():
                node.fail = self.advance(parent.fail, token)
                waiting.append(node)

    def advance(self, node: Node, token: int) -> Node:
        """Return the state after ``token``."""
        while token not in node.next and node is not self.root:
            node = node.fail
        return node.next.get(token, self.root)

    def scores(self, node: Node) -> torch.Tensor:
        """Return the score of each token in a state, float32 [size] on the device.  Computed at the first use."""
        if node.scores is None:
            states, costs = [], [np.float32(0)]  # this one and those it falls back to; what is taken back on the way
            state = node
            while state is not self.root:
                states.append(state)
                costs.append(costs[-1] + np.float32(0 if state.is_end else state.fail.total - state.total))
                state = state.fail
            scores = self.at_root + costs.pop()
            for state, cost in zip(reversed(states), reversed(costs), strict=True):
                for token, child in state.next.items():
                    scores[token] = cost + np.float32(child.gain)
            node.scores = import_torch().from_numpy(scores * self.alpha).to(self.device)
        return node.scores
