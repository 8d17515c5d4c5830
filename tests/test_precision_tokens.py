"""Decisions of the greedy decoding: margins, tokens and words."""

import pytest
import torch

from nemotron_npu.evaluation.wer import evaluate
from nemotron_npu.precision.tokens import Decisions, DecodingPath, Sides, count_words, measure_decisions
from nemotron_npu.transcript import Token

SPOKEN = "Dr. O'Neill can't pay twenty-three dollars; it's the colour, um, of Mr. Smith's car."


def tokens(*pairs):
    return tuple(Token(id, "x", frame, 0.0) for id, frame in pairs)


def test_decision_that_differs_comes_with_both_margins():
    """A step where the sides choose differently reports both choices and by how much each side preferred its own."""
    theirs = torch.log_softmax(torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 2.99], [0.0, 0.0, 9.0]]), -1).double()
    ours = torch.log_softmax(torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 3.01], [0.0, 0.0, 9.0]]), -1).double()
    path = DecodingPath.from_tokens(tokens((1, 0), (0, 0)), 1, blank=2)
    own = DecodingPath.from_tokens(tokens((1, 0)), 1, blank=2)
    assert path.chosen.tolist() == [1, 0, 2] and own.chosen.tolist() == [1, 2]
    decisions = Decisions()
    measure_decisions(decisions, Sides(own, path), 0, Sides(ours, theirs), str)
    found = decisions.first_difference
    assert (found["frame"], found["reference"], found["candidate"]) == (0, "0", "2")
    assert found["reference_margin"] == pytest.approx(0.01, abs=1e-5)
    assert found["candidate_margin"] == pytest.approx(0.01, abs=1e-5)
    assert (decisions.steps, decisions.undecided, decisions.search_fault) == (3, 1, None)
    assert decisions.smallest_margin == pytest.approx(0.01, abs=1e-5) and decisions.margins.sum() == 3


def test_equal_tokens_are_never_negative():
    """A candidate with many more tokens than the reference has no equal tokens, rather than fewer than none."""
    decisions = Decisions(reference_tokens=2, token_errors=5)
    assert decisions.equal_tokens == decisions.as_dict()["equal_tokens"] == 0


def test_path_has_no_blank_in_a_frame_full_of_tokens():
    """A frame with the maximum number of tokens ends without a blank."""
    full = tokens((1, 0), (1, 0), (1, 0))
    assert DecodingPath.from_tokens(full, 2, 9, max_symbols=3).chosen.tolist() == [1, 1, 1, 9]
    assert DecodingPath.from_tokens(full, 2, 9, max_symbols=None).chosen.tolist() == [1, 1, 1, 9, 9]


def test_words_against_the_reference_count_as_spelled():
    """Case and punctuation count between the two sides; against the spoken text both are normalized."""
    decisions = Decisions()
    count_words(decisions, Sides("one Two, three", "one two three"), "one two four")
    assert (decisions.reference_words, decisions.word_errors) == (3, 1)
    assert (decisions.candidate_transcript_errors, decisions.reference_transcript_errors) == (1, 1)


@pytest.mark.parametrize(
    "hypothesis",
    [
        SPOKEN,
        "doctor o'neill can not pay 23 dollars it is the color of mister smith's car",
        "dr o neill cant pay twenty three dollar its a colour of mr smiths",
        "",
    ],
)
def test_words_have_the_error_rate_of_wer_report(hypothesis):
    """Case, punctuation, contractions, numbers and spelling count as in ``--wer_report``, on both sides."""
    decisions = Decisions()
    count_words(decisions, Sides(hypothesis, "it's"), SPOKEN)
    for side, text in (("candidate", hypothesis), ("reference", "it's")):
        score = evaluate([("a.wav", SPOKEN, text, 1.0)]).overall
        figures = decisions.as_dict()
        assert figures[f"{side}_wer_percent"] == pytest.approx(100 * score.normalized_words.rate)
        assert figures[f"{side}_written_wer_percent"] == pytest.approx(100 * score.words.rate)
        assert decisions.transcript_words == score.normalized_words.length
        assert decisions.written_words == score.words.length


def test_words_without_a_spoken_word_count_insertions():
    """A reference text of no words leaves a word count of zero, and no division by it."""
    decisions = Decisions()
    count_words(decisions, Sides("one", ""), "um")
    assert (decisions.transcript_words, decisions.candidate_transcript_errors) == (0, 1)
    assert (decisions.written_words, decisions.candidate_written_errors) == (1, 1)
    assert (decisions.reference_words, decisions.word_errors) == (0, 1)
    assert "candidate_wer_percent" not in decisions.as_dict()
