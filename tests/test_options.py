"""Options: their values, combinations that are not possible, completion in a shell."""

import os

import pytest
from support import CLIP, INFERENCE, PER_FILE, run_process

from nemotron_npu.cli.command_line import parse_options
from nemotron_npu.cli.options import Options
from nemotron_npu.formats import COLLECTED, FILES

HOME = os.path.expanduser("~")


@pytest.mark.parametrize("option, value", [("--threads", 100_000), ("--threads", 10**11), ("--block_ms", 10**11)])
def test_numbers_above_the_maximum_are_rejected(cli, option, value):
    """Numbers that no machine can serve are rejected."""
    code, out, err = cli(CLIP, option, value)
    assert (code, out) == (2, "") and f"argument {option}: {value} " in err


@pytest.mark.parametrize("option", ["--precision_compare", "--benchmark"])
def test_measurements_cannot_be_resumed(cli, tmp_path, option):
    """Measurements cover all inputs, so that they cannot be resumed."""
    code, out, err = cli(CLIP, "--output_dir", tmp_path, "--resume", option)
    assert (code, out) == (2, "") and "omit --resume" in err


def test_report_without_measurement_is_rejected(cli):
    """--report without a measurement is rejected."""
    code, _, err = cli(CLIP, "--report", "report")
    assert code == 2 and "--report: needs" in err


@pytest.mark.parametrize(
    "args, words",
    [
        (["a.wav", "--output_format", "srt,vtt"], "several need --output_dir"),
        (["a.wav", "b.wav", "--output_format", "vtt"], "several need --output_dir"),
        (
            ["a.wav", "--output_format", "docx"],
            "'docx' is none of txt, json, srt, vtt, tsv, ctm, jsonl, manifest, events and all",
        ),
        (["a.wav", "--resume"], "--resume: needs --output_dir"),
        (["-", "--resume", "--output_dir", "x"], "--resume: applies to files"),
        (["a.wav", "--output_dir", "/dev/null"], "--output_dir /dev/null"),
    ],
)
def test_output_options_are_checked_before_the_work(cli, args, words):
    """Output options that are not possible end the run before the work."""
    code, out, err = cli(*args)
    assert (code, out) == (2, "") and words in err.splitlines()[-1]


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("inference.py --output_f", {"--output_format"}),
        ("inference.py --output_format ", {*PER_FILE, "jsonl", "manifest", "all"}),
        ("inference.py --engine n", {"native", "nemo"}),
    ],
)
def test_argcomplete_completes_options(tmp_path, typed, offered):
    """A shell with argcomplete completes options and their values."""
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE_IFS": "\n"}
    run_process(INFERENCE, env={**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)})
    assert {word.strip() for word in answer.read_text().splitlines()} == offered


def test_options_default_to_the_bundled_model_and_text():
    """Without arguments all options have the defaults of their dataclasses."""
    assert parse_options([]) == Options()


def test_options_reach_the_dataclass_of_their_part():
    """Each part gets its own options, and the values that follow from others."""
    options = parse_options(["a.wav", "--chunk_ms", "all", "--graph", "on", "--engine", "native", "--threads", "2"])
    assert options.input.audio == ("a.wav",)
    assert options.measure.all_chunks and options.model.chunk_ms is None
    assert options.model.graph and options.device.threads == 2
    assert options.measure.engines == ("native",)
    assert parse_options(["a.wav", "--output_dir", "out"]).output.formats == (*FILES, *COLLECTED)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--doctor", "--chunk_ms", "80"], "--doctor: checks the environment (omit --chunk_ms)"),
        (["--doctor", "a.wav"], "--doctor: checks the environment (omit AUDIO)"),
        (["--doctor", "--output_format", "srt"], "--doctor: prints txt or json"),
        (["a.wav", "--boost_alpha", "2"], "--boost_alpha: needs --boost_words"),
        (["a.wav", "--max_line_width", "30"], "--max_line_width: applies to subtitles (--output_format srt or vtt)"),
        (
            ["a.wav", "--output_format", "srt", "--max-line-count", "1", "--max-words-per-line", "3"],
            "--max_words_per_line: has no effect with --max_line_count (omit one)",
        ),
        (["--max_line_count", "0"], "argument --max_line_count: '0' is not a whole number of 1 or more"),
        (["--max_words_per_line=-3"], "argument --max_words_per_line: '-3' is not a whole number of 1 or more"),
        (["--max_line_width", "9999"], "argument --max_line_width: 9999 exceeds the maximum of 1000"),
        (["a.wav", "--bounds", "mel=1"], "--bounds: needs --precision_compare"),
    ],
)
def test_options_that_do_not_go_together_are_rejected(arguments, problem, capsys):
    """Wrong usage ends with exit code 2; the last line has the form ``subject: problem (hint)``."""
    with pytest.raises(SystemExit) as stop:
        parse_options(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {problem}")


@pytest.mark.parametrize(
    "typed, same",
    [
        (["--output-dir", "x", "--chunk-ms=560ms"], ["--output_dir", "x", "--chunk_ms", "560"]),
        (["-o", "x"], ["--output_dir", "x"]),
        (["--device", "CPU"], ["--device", "cpu"]),
        (["--device", "NPU", "--decoder-device", "NPU:1"], ["--device", "npu", "--decoder_device", "npu:1"]),
        (["a.wav", "--quiet", "b.wav"], ["--quiet", "a.wav", "b.wav"]),
        (["--output_dir=~/x", "~/a.wav"], ["--output_dir", f"{HOME}/x", f"{HOME}/a.wav"]),
    ],
)  # fmt: skip
def test_other_spellings_of_options_are_accepted(typed, same):
    """Dashes, units, capital letters, ``~`` and inputs between options mean what they mean elsewhere."""
    assert parse_options(typed) == parse_options(same)


@pytest.mark.parametrize(
    "typed, problem",
    [
        ("--devise=cpu", r"--devise: no such option (did you mean --device?)"),
        ("--zz\x1b[1m", r"--zz\x1b[1m: no such option (--help lists them)"),
        ("--chunk_ms=560s", "'560s' is not a number of milliseconds (80, 160, 560, 1120 or all)"),
    ],
)
def test_unknown_options_are_named_with_a_hint(cli, typed, problem):
    """The option that may be meant, or the values on offer."""
    code, out, err = cli(CLIP, typed)
    assert (code, out) == (2, "") and err.rstrip().endswith(problem)
