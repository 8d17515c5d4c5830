"""Names and texts with escape codes: no output to a terminal or a text file moves the cursor or hides text."""

import json
import os
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import CLIP, DEMO, INFERENCE, lines, run_process

from nemotron_npu.cli.console import Console
from nemotron_npu.cli.parser import make_parser
from nemotron_npu.errors import MAX_LINE, InputError, printable
from nemotron_npu.formats import FORMATS

CODES = "\x1b]0;pwned\x07\x1b[31m\x9b2J\u202e\u2066\u200b\u200d\ufeff\u2028\x85\r"
STARTS_WORK = {"acceptance", "ray_address", "help", "version"}  # options whose value starts other programs, or has none


def assert_harmless(text: str) -> None:
    """Assert that text has no control, format (bidi, zero-width) or separator characters but line breaks and tabs."""
    found = {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} and c not in "\n\t"}
    assert not found, (found, text)


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> SimpleNamespace:
    """A model, a recording and a folder whose names have escape codes."""
    monkeypatch.chdir(tmp_path)
    names = SimpleNamespace(model=f"m{CODES}.nemo", audio=f"a{CODES}.wav", broken=f"b{CODES}.wav", folder=f"out{CODES}")
    os.symlink(DEMO, names.model)
    shutil.copy(CLIP, names.audio)
    (tmp_path / names.broken).write_text("no audio")
    return names


def test_names_of_model_recordings_and_folder(cli, hostile):
    """Names of the model, of recordings and of the folder, in every message of a run and every file of text."""
    common = ["--device", "cpu", "--model_path", hostile.model]
    for options in (
        [],
        ["--output_dir", hostile.folder],
        ["--output_dir", hostile.folder],
        ["--output_dir", hostile.folder, "--resume"],
        ["--output_dir", hostile.folder, "--resume", "--chunk_ms", 80],
        ["--stream"],
        ["--debug"],
    ):
        code, out, err = cli(hostile.audio, hostile.audio, hostile.broken, *common, *options)
        assert code in (1, 2) and "pwned" in err
        assert_harmless(out + err)
    for folder, _, names in os.walk(hostile.folder):
        for name in names:
            with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
                assert_harmless(file.read())
    assert [line["audio"] for line in lines(Path(hostile.folder) / "results.jsonl")] == 2 * [hostile.audio]


@pytest.mark.parametrize("name", FORMATS)
def test_names_in_formats_on_stdout(cli, hostile, name):
    """The name of a recording, in each format on stdout; JSON keeps it by its own escapes."""
    options = ["--stream"] if FORMATS[name].live else []
    code, out, err = cli(hostile.audio, "--device", "cpu", "--output_format", name, "--quiet", *options)
    assert code == 0 and out and not err
    assert_harmless(out)
    if name.startswith("json") or FORMATS[name].live:
        assert {json.loads(line)["audio"] for line in out.splitlines()} == {hostile.audio}


def test_values_of_all_options(cli, hostile):
    """A hostile value of each option, and a hostile option."""
    options = [action for action in make_parser()._actions if action.option_strings and action.nargs != 0]
    assert len(options) > 15
    for action in options:
        if action.dest not in STARTS_WORK:
            code, out, err = cli("none.wav", "--device", "cpu", action.option_strings[-1], CODES)
            assert code in (1, 2), (action.dest, out, err)
            assert_harmless(out + err)
    for word in (f"--{CODES}", f"-{CODES}", CODES, f"{CODES}*", f"{CODES}.json", f"{CODES}.txt"):
        code, out, err = cli(word, "--device", "cpu")
        assert code in (1, 2) and err
        assert_harmless(out + err)


def test_texts_of_manifest_and_phrases(cli, hostile, tmp_path):
    """Texts of a manifest in the table of word errors, and phrases that cannot be spelled."""
    entry = {"audio_filepath": str(CLIP), "text": f"one {CODES} two"}
    manifest, phrases = tmp_path / f"m{CODES}.json", tmp_path / f"p{CODES}.txt"
    manifest.write_text(json.dumps(entry) + "\n" + json.dumps({**entry, "offset": CODES}) + f"\n{CODES}\n")
    phrases.write_text(f"x{CODES.translate({13: 32, 0x85: 32, 0x2028: 32})}\none\n")
    for options in (["--wer_report"], ["--wer_report", "--output_format", "json"], ["--boost_words", phrases]):
        code, out, err = cli(manifest, "--device", "cpu", *options)
        assert code == 1 and "pwned" in err
        assert_harmless(out + err)


def test_doctor(hostile):
    """The name of a model in the doctor's report."""
    result = run_process(INFERENCE, "--doctor", "--model_path", f"none{CODES}.nemo", "--device", "cpu")
    assert "none" in result.stdout
    assert_harmless(result.stdout + result.stderr)


def test_traceback_is_escaped(capsys):
    """A traceback of --debug is escaped as well."""
    try:
        raise ValueError(CODES)
    except ValueError as error:
        Console(debug=True).error("x", error)
    err = capsys.readouterr().err
    assert "Traceback" in err and "pwned" in err
    assert_harmless(err)


def test_joiners_of_scripts_stay():
    """Persian and Hindi keep the joiners that they are spelled with; line breaks and tabs stay in texts of lines."""
    for text in ("می\u200cخواهم", "क्\u200dष", "naïve 中文\u3000"):
        assert printable(text) == text
    assert printable("a\u200cb\tc\n") == r"a\u200cb\tc\n"
    assert printable("a\tb\n", lines=True) == "a\tb\n"


def test_long_name_costs_a_short_line(cli):
    """A name of 100,000 characters costs a short line."""
    for name in (100_000 * "x", f"{100_000 * 'x'}.json", f"--{100_000 * 'x'}"):
        code, out, err = cli(name, "--device", "cpu")
        assert code in (1, 2) and not out
        assert all(len(line) <= MAX_LINE + 100 for line in err.splitlines()), err[:300]
    assert len(str(InputError(100_000 * "x", "bad"))) < MAX_LINE
