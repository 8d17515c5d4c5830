"""``evaluation/``: error rates equal NeMo's, normalization equals Whisper's, and tables and reports show them."""

from __future__ import annotations

import io
import json

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu.checkpoint import published
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.evaluation.report import alignment_report, chunk_table, summary_table, use_color
from nemotron_npu.evaluation.wer import (
    NORMALIZERS,
    Errors,
    Evaluation,
    character_errors,
    evaluate,
    normalize,
    word_errors,
)
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"
TEXTS = st.lists(
    st.text(alphabet="ab ,\t'é", max_size=12) | st.lists(st.sampled_from(["one", "two", "three"])).map(" ".join),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80, deadline=None, database=None)
@given(st.data())
def test_error_rates_equal_those_of_nemo(data):
    """Word and character error rates of random texts are those of NeMo's ``word_error_rate``."""
    from nemo.collections.asr.metrics.wer import word_error_rate

    references = data.draw(TEXTS)
    hypotheses = [data.draw(st.sampled_from(references) | TEXTS.map(" ".join)) for _ in references]
    overall = evaluate(("", r, h, 1.0) for r, h in zip(references, hypotheses, strict=True)).overall
    assert overall.words.rate == pytest.approx(word_error_rate(hypotheses, references))
    assert overall.characters.rate == pytest.approx(word_error_rate(hypotheses, references, use_cer=True))


def test_each_kind_of_error_is_counted():
    """Hits, substitutions, insertions and deletions; an empty reference has an infinite rate."""
    assert word_errors("one two three four", "one too three four five") == Errors(3, 1, 1, 0)
    assert word_errors("one two three", "one three") == Errors(2, 0, 0, 1)
    assert character_errors("two", "to") == Errors(2, 0, 0, 1)
    assert word_errors("", "one two") == Errors(insertions=2) and word_errors("", "one").rate == float("inf")
    assert word_errors("one two", "").rate == 1
    assert word_errors("", "").rate == float("inf"), "as in NeMo"


def test_normalize_equals_whispers_normalizer():
    """Python's own English texts are normalized as by transformers' Whisper with the package's table of spellings."""
    import importlib.resources
    from pydoc_data.topics import topics

    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spellings = importlib.resources.files("whisper_normalizer") / "normalizers" / "english.json"
    whisper = EnglishTextNormalizer(json.loads(spellings.read_text()))
    lines = [line for name in sorted(topics)[::4] for line in topics[name].splitlines()]
    lines += ["kinda, sorta; dunno 'cause: of the cause", "Mr. O'Brien paid $3.50 -- twenty-five percent of it, um."]
    assert [normalize(line) for line in lines] == [whisper(line.replace("\u2019", "'")).strip() for line in lines]


def test_normalized_rate_ignores_case_punctuation_and_spelling():
    """Case, punctuation, spelled-out numbers and British spelling are no errors after normalization."""
    score = evaluate(
        [("a.wav", "Mr. Brown's colour: twenty-one, uh, it's!", "mister browns color 21 it is", 3.0)]
    ).files[0]
    assert score.words.rate == 1 and score.normalized_words == Errors(5, 1, 0, 1)


def test_curly_apostrophes_are_straight_ones():
    """U+2019 and U+02BC are no errors once texts are normalized; as written they are."""
    straight = "it's the dog's, isn't it"
    for apostrophe in "\u2019\u02bc":
        curly = straight.replace("'", apostrophe)
        for normalizer in NORMALIZERS:
            score = evaluate([("a.wav", curly, straight, 3.0)], normalizer).files[0]
            assert score.words.count == 3 and score.normalized_words.count == 0
    assert normalize(curly) == "it is the dog is is not it"


def test_basic_normalizer_is_whispers_for_other_languages():
    """It leaves words as they are, but for case and punctuation, and the tables say which one was used."""
    results = [("a.wav", "Ein Mann, um zwanzig Uhr: «Mm!»", "ein mann zwanzig uhr mm", 3.0)]
    basic, english = evaluate(results, "basic"), evaluate(results)
    assert (basic.overall.normalized_words.length, english.overall.normalized_words.length) == (6, 4)
    assert normalize(results[0][1], "basic") == "ein mann um zwanzig uhr mm"
    for evaluation, name in ((basic, "basic"), (english, "whisper")):
        assert f"normalized ({name})" in summary_table(evaluation)
        assert f"normalized ({name})" in chunk_table([(80, evaluation, 1.0)], published=False)
        assert evaluation.as_dict()["normalizer"] == name


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluate(
        [
            ("good.wav", "one two three", "one two three", 2.0),
            ("bad.wav", "one two three four", "one too three four five", 3.0),
            ("worse.wav", "six seven", "six", 1.0),
        ]
    )


def test_summary_table_has_every_count(evaluation):
    """The table has a title with files and duration, and a row as written."""
    lines = summary_table(evaluation).splitlines()
    assert lines[0] == "Word errors in 3 files with a reference text (6 s)"
    assert " ".join(lines[2].split()) == "as written 33.33 % 9 7 1 1 1 30.00 %"
    assert max(map(len, lines)) <= 80


def test_alignment_report_shows_the_worst_file_first(evaluation):
    """Files with errors are shown word for word, the highest rate first, then the most errors; others are left out."""
    report = alignment_report(evaluation)
    assert report.index("bad.wav: 50.00 %, 2 of 4 words") < report.index("worse.wav: 50.00 %, 1 of 2 words")
    assert "good.wav" not in report and "\x1b" not in report
    assert "  ref one two three four ****\n  hyp one too three four five\n          S              I" in report
    assert "  ref six seven\n  hyp six *****\n          D" in report


def test_alignment_report_compares_the_texts_that_differ_less():
    """Texts are compared as written or normalized, whichever gives fewer errors."""
    punctuated = evaluate([("a.wav", "hello world how are you", "Hello, world. How are they?", 2.0)])
    report = alignment_report(punctuated)
    assert "texts normalized (whisper)" in report and "hyp hello world how are they" in report
    digits = evaluate([("a.wav", "one two three", "one two four", 2.0)])
    assert "texts as written" in alignment_report(digits)
    assert alignment_report(evaluate([("a.wav", "one", "one", 1.0)])) == "No errors, texts as written"


def test_alignment_report_in_color_has_the_same_text(evaluation):
    """Without its escape sequences the colored report is the plain one."""
    import re

    colored = alignment_report(evaluation, color=True)
    assert {f"\x1b[{color}m" for color in ("31", "32", "33")} <= set(re.findall(r"\x1b\[\d\dm", colored))
    strip = lambda text: [line.rstrip() for line in re.sub(r"\x1b\[\d+m", "", text).splitlines()]  # noqa: E731
    assert strip(colored) == strip(alignment_report(evaluation))


def test_alignment_longer_than_the_terminal_is_broken():
    """No line is wider than the terminal, and no word is lost."""
    text = " ".join(f"word{i}" for i in range(100))
    for width in (20, 60, 100):
        report = alignment_report(evaluate([("a.wav", text, text.replace("word7 ", "wrong "), 9.0)]), width)
        aligned = [line for line in report.splitlines() if line.startswith("  ")]
        assert max(map(len, aligned)) <= width and sum("ref" in line for line in aligned) > 5
        assert " ".join(line[6:] for line in aligned if line.startswith("  ref")).split() == text.split()


def test_color_is_for_terminals_without_no_color(monkeypatch):
    """A terminal gets color, a pipe and a user who sets NO_COLOR do not."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert use_color(Terminal()) and not use_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color(Terminal())


def test_chunk_table_shows_published_rates_as_not_measured(evaluation):
    """Rates from the model card stand next to those of this run, and a note says that they were not measured here."""
    measured = [(80, evaluation, 0.5), (1120, evaluation, 0.25), (240, evaluation, 1)]
    table = chunk_table(measured, published=True)
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert rows[2].startswith("80 ms 33.33 % ") and rows[2].endswith(" 30.00 % 12.0 8.43 % 2.80 %")
    assert rows[3].endswith("24.0 6.93 % 2.32 %") and rows[4].endswith(" 6.0"), "the model card has no 240 ms"
    assert "not measured in this run" in table and max(map(len, table.splitlines())) <= 80
    assert "published" not in chunk_table(measured, published=False)


def test_published_checkpoints_are_known_by_their_content(tmp_path, monkeypatch):
    """Size and SHA-256 decide, wherever the file lies; a file of another size is not read."""
    for name, data in (("it.nemo", b"abc"), ("other.nemo", b"abd"), ("longer.nemo", b"abcd")):
        (tmp_path / name).write_bytes(data)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    monkeypatch.setattr(published, "PUBLISHED", {digest: (3, "a model")})
    assert published.is_published(tmp_path / "it.nemo")
    assert not published.is_published(tmp_path / "other.nemo") and not published.is_published(tmp_path)
    monkeypatch.setattr(published, "sha256", None)
    assert not published.is_published(tmp_path / "longer.nemo")


# ---------------------------------------------------------------- on the command line


@pytest.fixture(scope="module")
def demo() -> Recognizer:
    return Recognizer(DEMO, CPU)


def test_recognizer_at_another_chunk_size_shares_weights(demo, tiny):
    """``at_chunk`` shares the weights and gives the tokens of a recognizer that is loaded at that chunk size."""
    for first in (demo, Recognizer(tiny, CPU)):
        for chunk_ms in (80, 160, 560):
            other = first.at_chunk(chunk_ms)
            loaded = Recognizer(DEMO if first is demo else tiny, CPU, options=ModelOptions(chunk_ms=chunk_ms))
            assert other.encoder.layers is first.encoder.layers and other.encoder.positions is first.encoder.positions
            assert (other.chunk_ms, other.chunk_samples) == (loaded.chunk_ms, loaded.chunk_samples)
            assert other.transcribe([CLIP])[0] == loaded.transcribe([CLIP])[0]
            with other.stream() as live, loaded.stream() as expected:
                for stream in (live, expected):
                    stream.feed(soundfile.read(CLIP, dtype="float32")[0])
            assert live.finish() == expected.finish()
    assert demo.chunk_ms == 1120 and demo.transcribe([CLIP])[0].text == CLIP_WORDS
    with pytest.raises(SetupError, match="--chunk_ms 100: this checkpoint offers"):
        demo.at_chunk(100)


@pytest.fixture
def known(tmp_path):
    """Return a manifest of three inputs with a reference text, one of them broken."""
    samples, rate = soundfile.read(CLIP)
    soundfile.write(tmp_path / "begin.wav", samples[: 3 * rate], rate)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    texts = {str(CLIP): CLIP_WORDS, "begin.wav": "three one five", "broken.wav": "nine"}
    lines = [json.dumps({"audio_filepath": path, "text": text}) + "\n" for path, text in texts.items()]
    (tmp_path / "known.jsonl").write_text("".join(lines))
    return tmp_path / "known.jsonl"


def test_word_errors_are_printed_for_reference_texts(cli, known):
    """Inputs with a reference text give a summary on stderr; --wer_report adds alignments, and JSON each file's."""
    code, out, err = cli(known, "--device", "cpu")
    assert code == 1 and "broken.wav" in err and len(out.splitlines()) == 2
    assert "Word errors in 2 files with a reference text (10 s)" in err and "The worst" not in err
    code, out, err = cli(known, "--device", "cpu", "--wer_report", "--quiet")
    assert "The worst 1 of 2 files" in err and "  ref three one" in err and "  hyp three one four one\n" in err
    assert len(out.splitlines()) == 2
    code, out, err = cli(known, "--device", "cpu", "--wer_report", "--output_format", "json")
    first, second = map(json.loads, out.splitlines())
    assert first["reference"] == CLIP_WORDS and first["errors"]["words"]["rate"] == 0
    assert second["errors"]["words"]["substitutions"] == 1 and "The worst 1 of 2 files" in err


def test_evaluation_json_has_every_figure(cli, known, tmp_path):
    """With --report the errors of each file and their sum are written to evaluation.json."""
    cli(known, "--device", "cpu", "--wer_report", "--report", tmp_path)
    figures = json.loads((tmp_path / "evaluation.json").read_text())["evaluation"]
    assert len(figures["files"]) == 2 and figures["files"][1]["audio"].endswith("begin.wav")
    assert figures["overall"]["words"]["hits"] == 10


def test_finished_output_folder_is_evaluated_without_a_model(cli, known, tmp_path, monkeypatch):
    """--resume of a finished folder prints the same table without loading the model."""
    options = [known, "--device", "cpu", "--output_dir", tmp_path / "out", "--output_format", "txt", "--wer_report"]
    first = cli(*options)[2]
    monkeypatch.setattr("nemotron_npu.cli.transcribe.load_recognizer", None)
    code, out, err = cli(*options, "--resume", "--report", tmp_path / "report")
    table = first[first.index("Word errors") :]
    assert code == 1 and out == "" and "The worst 1 of 2 files" in err and "0 done, 2 done before, 1 failed" in err
    assert table.splitlines()[:4] == err[err.index("Word errors") :].splitlines()[:4]
    assert len(json.loads((tmp_path / "report" / "evaluation.json").read_text())["evaluation"]["files"]) == 2


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_chunk_ms_all_prints_a_row_for_each_chunk_size(cli, known, engine):
    """--chunk_ms all transcribes at each chunk size; JSON has a line for each."""
    code, out, err = cli(known, "--device", "cpu", "--chunk_ms", "all", "--engine", engine)
    assert code == 1 and err.count("broken.wav") == 1, "a file that failed is not tried again"
    assert [line.split()[0] for line in out.splitlines()[2:6]] == ["80", "160", "560", "1120"]
    assert "published" not in out, "these are figures of another model"
    code, out, err = cli(known, "--device", "cpu", "--chunk_ms", "all", "--engine", engine, "--output_format", "json")
    assert [json.loads(line)["chunk_ms"] for line in out.splitlines()] == [80, 160, 560, 1120]
    assert all(json.loads(line)["words"]["length"] == 11 for line in out.splitlines()) and "published" not in err


@pytest.mark.parametrize("option", [("--wer_report",), ("--chunk_ms", "all")])
def test_evaluation_without_reference_text_is_refused(cli, option):
    """--wer_report and --chunk_ms all without a reference text end before the model is loaded."""
    code, out, err = cli(CLIP, "--device", "cpu", *option)
    assert (code, out) == (2, "") and "no input has a reference text" in err and len(err.splitlines()) == 1
    assert "loading" not in err


def test_chunk_ms_all_excludes_other_outputs(cli):
    """--chunk_ms all cannot be combined with options that give another output."""
    for option in (
        ["--stream"],
        ["--precision_compare"],
        ["--benchmark"],
        ["--output_dir", "out"],
        ["--wer_report"],
        ["--output_format", "srt"],
    ):
        code, out, err = cli(CLIP, "--chunk_ms", "all", *option)
        assert (code, out) == (2, "") and "--chunk_ms all" in err and "prints a table" in err


def test_interrupted_chunk_ms_all_prints_finished_rows(cli, known, monkeypatch):
    """After an interruption the table has the chunk sizes that were finished."""
    with known.open("a") as manifest:
        manifest.write(json.dumps({"audio_filepath": str(CLIP)}) + "\n")
    at_chunk = Recognizer.at_chunk

    def interrupted(self, chunk_ms):
        if chunk_ms == 560:
            raise KeyboardInterrupt
        return at_chunk(self, chunk_ms)

    monkeypatch.setattr(Recognizer, "at_chunk", interrupted)
    code, out, err = cli(known, "--device", "cpu", "--chunk_ms", "all")
    assert code == 130 and [line.split()[0] for line in out.splitlines()[2:]] == ["80", "160"]
    assert "skipped, without a reference text: 1 of 3" in err
