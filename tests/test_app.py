"""The program as a process: first steps of a new user, errors, interruptions."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support import CLIP, CLIP_WORDS, INFERENCE, ROOT, run_process

from nemotron_npu.encoder import Encoder
from nemotron_npu.nemo_engine import NemoRecognizer
from nemotron_npu.recognizer import Recognizer


def test_program_without_arguments_transcribes_bundled_clip():
    """Without arguments stdout has the text of the bundled clip and nothing else."""
    result = run_process(INFERENCE, cwd="/")
    assert (result.returncode, result.stdout) == (0, CLIP_WORDS + "\n"), result.stderr
    assert 1 <= len(result.stderr.splitlines()) <= 3, "which device, which model: no noise of the libraries"
    assert "device: " in result.stderr and "loading demo.nemo" in result.stderr


def test_quiet_leaves_stderr_empty():
    """With --quiet nothing is written to stderr."""
    result = run_process(INFERENCE, "--quiet", "--device", "cpu", CLIP)
    assert (result.returncode, result.stdout, result.stderr) == (0, CLIP_WORDS + "\n", "")


def test_debug_shows_log_of_nemo():
    """With --debug stderr has the log of NeMo."""
    result = run_process(INFERENCE, "--debug", "--engine", "nemo", "--device", "cpu", CLIP)
    assert result.returncode == 0 and result.stdout.strip().endswith(CLIP_WORDS)
    assert "NeMo" in result.stderr


def test_closed_pipe_ends_run_without_error(tiny):
    """A reader that closes the pipe ends the run with exit code 0 and no message."""
    command = [sys.executable, INFERENCE, "--model_path", tiny, "--quiet", *[CLIP] * 3]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(120), process.stderr.read()) == (0, "")


@pytest.mark.parametrize("args", [["--help"], ["--nonsense"], ["--device", "tpu"], ["--chunk_ms", "90"], ["none.wav"]])
def test_help_and_wrong_usage_import_nothing_heavy(args):
    """Help, wrong usage and unusable files are answered before torch or NeMo is imported."""
    code = (
        f"import sys, inference\n"
        f"try: inference.main({args!r})\n"
        f"except SystemExit: pass\n"
        f"print(*sorted({{'torch', 'nemo', 'lightning', 'librosa', 'omegaconf'}} & set(sys.modules)), file=sys.stderr)"
    )
    result = run_process("-c", code, cwd=ROOT)
    assert result.stderr.splitlines()[-1] == ""


def test_help_names_options_and_exit_codes():
    """The help names options and exit codes."""
    out = run_process(INFERENCE, "--help").stdout
    for word in ("--model_path", "--device", "--chunk_ms", "--precision_compare", "--benchmark", "exit code", "130"):
        assert word in out


def test_missing_packages_name_the_setup_script(tmp_path):
    """An interpreter without the packages, as in a new shell, names the setup script."""
    result = run_process("-S", "-E", INFERENCE, CLIP)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "source setup_env.sh" in result.stderr


def test_debug_shows_traceback_of_error(cli, tmp_path):
    """With --debug the traceback comes before the error line."""
    code, _, err = cli("--model_path", tmp_path / "none.nemo", "--debug")
    assert code == 2 and "Traceback" in err and "none.nemo: no such file" in err.splitlines()[-1]


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_ctrl_c_keeps_printed_results_and_exits_with_130(cli, monkeypatch, engine):
    """Ctrl-C ends the run with 130, keeps what was printed and reports how many are not done."""
    kind = {"native": Recognizer, "nemo": NemoRecognizer}[engine]
    results = kind.results

    def interrupted(self, sources, *rest):
        yield next(results(self, sources, *rest))
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "results", interrupted)
    code, out, err = cli(CLIP, CLIP, "--engine", engine, "--device", "cpu", "--quiet")
    assert (code, out) == (130, f"{CLIP}: {CLIP_WORDS}\n") and err == "inference.py: interrupted: 1 of 2 not done\n"


def test_ctrl_c_prints_results_that_waited_for_their_turn(cli, monkeypatch, tmp_path, digits):
    """Ctrl-C prints results that were complete before an earlier recording."""
    audio, rate = digits
    short = tmp_path / "short.wav"
    soundfile.write(short, audio[:rate], rate)
    step, calls = Encoder.step, []

    def interrupted(self, rows, state, ends):
        calls.append(ends)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, rows, state, ends)

    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(40 * 16000), 16000)
    monkeypatch.setattr(Encoder, "step", interrupted)
    code, out, _ = cli(long, short, short, "--batch_size", 2, "--device", "cpu", "--quiet")
    assert (code, out) == (130, f"{short}: three\n" * 2)


@pytest.mark.parametrize("encoding", ["gbk", "cp437", "latin-1", "ascii", "utf-8"])
def test_json_is_valid_in_every_encoding_of_stdout(tmp_path, encoding):
    """What the encoding lacks is escaped as JSON does."""
    path = tmp_path / "é🎉.wav"
    shutil.copy(CLIP, path)
    command = [sys.executable, INFERENCE, path, "--device", "cpu", "--quiet", "--output_format", "json"]
    out = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}).stdout
    assert json.loads(out.decode(encoding))["audio"] == str(path)
