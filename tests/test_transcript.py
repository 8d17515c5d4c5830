"""Tokens become words with NeMo's spelling and times, and segments that fit in subtitles."""

from __future__ import annotations

import random

import pytest
import torch
from checkpoints import TINY_SIZE, build_model, train_tokenizer
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu.audio import read_audio
from nemotron_npu.decoder import Emission
from nemotron_npu.engine import ModelOptions
from nemotron_npu.recognizer import Recognizer
from nemotron_npu.spelling import Speller
from nemotron_npu.transcript import LINE_CHARACTERS, Transcript, Word, split_segments

CPU = torch.device("cpu")
FRAME = 0.08
SPEECH = [
    "Well, it's a quarter to nine, isn't it?",
    "Mr. Brown said: no! I'm not going.",
    "the state-of-the-art, twenty-one year old 'model'",
    "hello world. how are you? fine, thanks.",
]


@pytest.fixture(scope="module")
def nemo(tmp_path_factory):
    """A NeMo model whose vocabulary has punctuation."""
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(SPEECH * 20, 70, directory)
    return build_model(directory, **{**TINY_SIZE, "pieces": 70})


@pytest.fixture(scope="module")
def speller(nemo) -> Speller:
    return Speller(list(nemo.tokenizer.vocab), nemo.tokenizer.ids_to_text, FRAME)


def emitted(ids, frames, confidence=None) -> list[Emission]:
    return [Emission(id, frame, 0.5, confidence) for id, frame in zip(ids, frames, strict=True)]


def by_nemo(model, ids, frames) -> tuple[str, list[tuple[str, int, int]]]:
    """Text and (word, start, end), in frames, as NeMo computes them from such tokens."""
    from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis

    hypothesis = Hypothesis(score=0.0, y_sequence=torch.tensor(ids), timestamp=torch.tensor(frames))
    model.decoding.decode_hypothesis([hypothesis])
    words = model.decoding.compute_rnnt_timestamps(hypothesis).timestamp["word"]
    return hypothesis.text, [(word["word"], word["start_offset"], word["end_offset"]) for word in words]


def in_frames(transcript: Transcript) -> list[tuple[str, int, int]]:
    return [(word.text, round(word.start / FRAME), round(word.end / FRAME)) for word in transcript.words]


def test_words_and_times_equal_nemo_with_punctuation(nemo, speller):
    """Text, words and frames of punctuated sentences equal NeMo's."""
    rng = random.Random(0)
    for text in SPEECH[:2] + SPEECH[3:]:
        ids = nemo.tokenizer.text_to_ids(text)
        frames = sorted(rng.choices(range(100), k=len(ids)))
        transcript = speller.transcript(emitted(ids, frames), 60.0)
        assert (transcript.text, in_frames(transcript)) == by_nemo(nemo, ids, frames)
        assert transcript.text == text and len(transcript.words) == len(text.split())


def test_random_tokens_are_spelled_as_by_nemo(nemo, speller):
    """The text equals NeMo's, and the words are that text, split.

    NeMo's own words differ from its text in places: a lone ``▁`` gives an empty word, and marks after a second space
    are words.  Everywhere else words and times are equal.
    """
    rng, same = random.Random(1), 0
    for _ in range(400):
        ids = rng.choices(range(len(nemo.tokenizer.vocab)), k=rng.randrange(1, 25))
        frames = sorted(rng.choices(range(100), k=len(ids)))
        transcript = speller.transcript(emitted(ids, frames), 60.0)
        text, words = by_nemo(nemo, ids, frames)
        assert transcript.text == text
        assert [word.text for word in transcript.words] == text.split()
        words = [word for word in words if word[0]]
        if " ".join(word for word, _, _ in words) == text.strip() and "⁇" not in text:
            assert in_frames(transcript) == words
            same += 1
    assert same > 250


def test_punctuation_is_attached_to_the_word_before(speller):
    """A mark of its own token extends the word, and its time."""
    pieces = ["▁hello", "▁", ".", "▁", "h", "o", "w"]
    if not set(pieces) <= set(speller.pieces):
        pieces = ["▁", "h", "▁", ".", "▁", "h"]
    transcript = speller.transcript(emitted([speller.pieces.index(p) for p in pieces], range(len(pieces))), 60.0)
    assert transcript.words[0].text.endswith(".") and transcript.words[0].end == pytest.approx(
        (pieces.index(".") + 1) * FRAME
    )
    assert transcript.text.split() == [word.text for word in transcript.words]


def test_wordpieces_are_joined():
    """Tokens that begin with ## continue a word."""
    pieces = ["[UNK]", "hel", "##lo", "there", "##'", "##s"]
    spell = lambda ids: " ".join(pieces[i] for i in ids).replace(" ##", "")  # noqa: E731
    transcript = Speller(pieces, spell, FRAME).transcript(emitted([1, 2, 3, 4, 5], [3, 4, 9, 9, 12]), 60.0)
    assert in_frames(transcript) == [("hello", 3, 5), ("there's", 9, 13)]


def test_word_confidence_is_the_minimum_of_its_tokens(nemo, speller):
    """A word also ends at the end of the recording; without measurements its confidence is None."""
    ids = nemo.tokenizer.text_to_ids("nine")
    assert len(ids) > 1
    tokens = [Emission(id, 20 + i, 0.5, 0.9 - 0.1 * i) for i, id in enumerate(ids)]
    word = speller.transcript(tokens, 1.61).words[0]
    assert word.confidence == pytest.approx(0.9 - 0.1 * (len(ids) - 1))
    assert word.end == 1.61 and 0 <= word.start < word.end
    assert speller.transcript(emitted(ids, [0] * len(ids)), 60.0).words[0].confidence is None


def test_no_tokens_give_an_empty_transcript(speller):
    """Silence has no text, words or segments."""
    transcript = speller.transcript([], 3.0)
    assert (transcript.text, transcript.words, transcript.segments) == ("", (), ())


def test_words_of_speech_equal_nemos_timestamps():
    """Both engines give the words of NeMo's transcribe(timestamps=True)."""
    from nemotron_npu.nemo_engine import NemoRecognizer

    samples = read_audio(str(CLIP))
    native = Recognizer(ROOT / "demo" / "demo.nemo", CPU, options=ModelOptions(chunk_ms=160)).transcribe([samples])[0]
    nemo = NemoRecognizer(ROOT / "demo" / "demo.nemo", CPU, options=ModelOptions(chunk_ms=160))
    stock = nemo.transcribe([samples])[0]
    assert [word.text for word in native.words] == CLIP_WORDS.split()
    assert [(w.text, w.start, w.end) for w in stock.words] == [(w.text, w.start, w.end) for w in native.words]
    hypothesis = nemo.model.transcribe([samples], timestamps=True, verbose=False)[0]
    theirs = [(w["word"], round(w["start"], 3), round(w["end"], 3)) for w in hypothesis.timestamp["word"]]
    assert theirs == [(w.text, w.start, w.end) for w in native.words]


# ---------------------------------------------------------------- segments


def spoken(text: str, gap: float = 0.15, pauses: dict[int, float] | None = None) -> tuple[Word, ...]:
    """Words of 0.2 s with ``gap`` between them, and longer ones before the words that ``pauses`` names."""
    words, now = [], 0.5
    for i, word in enumerate(text.split()):
        now += (pauses or {}).get(i, 0.0)
        words.append(Word(word, round(now, 3), round(now + 0.2, 3), 0.8))
        now += 0.2 + gap
    return tuple(words)


def texts(words, duration=1000.0) -> list[str]:
    return [segment.text for segment in split_segments(words, duration)]


def test_segments_end_at_sentences_and_pauses():
    """Closing quotes stay with their sentence; short pauses end nothing."""
    assert texts(spoken("Hello there. How are you? Fine!")) == ["Hello there.", "How are you?", "Fine!"]
    assert texts(spoken('He said "no." Then he left.')) == ['He said "no."', "Then he left."]
    assert texts(spoken("one two three four", pauses={2: 1.0})) == ["one two", "three four"]
    assert texts(spoken("one two three four", pauses={2: 0.5})) == ["one two three four"]


def test_titles_initials_and_numbers_end_no_sentence():
    """Their periods are not the end of a sentence, but that of ``I.`` is."""
    words = spoken("Mr. Smith and Dr. J. Jones paid 3.50 for it. Then I. Am here.")
    assert texts(words) == ["Mr. Smith and Dr. J. Jones paid 3.50 for it.", "Then I.", "Am here."]


def test_segments_fit_in_two_lines_and_seven_seconds():
    """Long text without marks is divided into segments that are not too short."""
    text = "and so my fellow americans ask not what your country can do for you ask what you can do for your country "
    for gap in (0.05, 0.3, 0.9):
        segments = list(split_segments(spoken(text * 5, gap), 1000.0))
        assert " ".join(segment.text for segment in segments) == " ".join((text * 5).split())
        for segment in segments:
            assert len(segment.text) <= 2 * LINE_CHARACTERS and segment.end - segment.start <= 7.0
            assert segment.text == " ".join(word.text for word in segment.words)
        assert sum(len(segment.text) for segment in segments) / len(segments) > 12, "no crumbs"


def test_long_sentence_is_cut_after_a_clause():
    """The comma near the middle is the place to cut."""
    sentence = (
        "when the rain had finally stopped in the late afternoon, we took our bicycles and went down to the lake."
    )
    assert texts(spoken(sentence)) == [sentence.partition(", ")[0] + ",", sentence.partition(", ")[2]]


def test_word_longer_than_a_line_stays_whole():
    """Words are never broken."""
    word = "donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
    assert any(word in text for text in texts(spoken(f"the {word} is late")))


def test_short_segment_is_shown_for_a_second():
    """It ends earlier if the next one starts or the recording ends."""
    first, second, third = split_segments(spoken("Yes. No. Go.", pauses={1: 0.1, 2: 5.0}), 6.7)
    assert first.end == second.start, "0.45 s later"
    assert second.end == pytest.approx(second.start + 1.0)
    assert third.end == 6.7 and third.confidence == pytest.approx(0.8)


def test_hours_without_mark_or_pause_are_segmented():
    """20,000 words in one sentence take no quadratic time."""
    words = spoken("word " * 20_000)
    assert sum(len(segment.words) for segment in split_segments(words, 9000.0)) == 20_000
