"""``doctor/run.py``: the report as a user sees it, and checks that crash, hang or raise."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doctors import DEMO, INFERENCE, NPU
from support import CLIP, ROOT, run_process

from nemotron_npu.doctor import run
from nemotron_npu.doctor.finding import OK, SKIPPED, Context, Finding
from nemotron_npu.doctor.run import Check, examine, show

# ---------------------------------------------------------------- as a user sees it


def test_report_of_a_sound_environment_is_ok_and_fits_a_page():
    """Each line is ok, at most 80 columns wide (but a SHA-256 of 64 digits) and without colors."""
    result = run_process(INFERENCE, "--doctor", "--device", "cpu", cwd="/")
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr, lines[-1]) == (0, "", "all is well"), result.stdout
    assert all(line.startswith(("ok ", " " * 9)) for line in lines[:-1])
    assert [line for line in lines if len(line) > 80 and not re.fullmatch(r" *[0-9a-f]{64}", line)] == []
    assert "\033" not in result.stdout
    for words in (
        "Python",
        "torch ",
        "triton",
        "nv_one_logger  *the mock",
        "NeMo",
        "mp3",
        "2,144,405",
        "SHA-256 [0-9a-f]{64}",
        "a live stream gives the same",
    ):
        assert re.search(words, " ".join(result.stdout.split())), words


def test_report_as_json_has_nothing_private(tmp_path):
    """Names of users, hosts and folders, and values of variables stay out of the report."""
    home = tmp_path / "marlowe"
    checkpoint = home / "secret project" / "voice.nemo"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(DEMO.read_bytes()[:100_000])
    secrets = {"HOME": str(home), "USER": "marlowe", "HF_TOKEN": "hf_s3cr3t", "ASCEND_HOME_PATH": str(home / "cann")}
    command = [INFERENCE, "--doctor", "--output_format", "json", "--device", NPU, "--model_path", checkpoint]
    result = run_process(*command, env={**os.environ, **secrets})
    document = json.loads(result.stdout)
    assert result.returncode == 2 and list(document) == ["state", "summary", "problems", "warnings", "findings"]
    assert document["state"] == "problem" and document["summary"].startswith(f"{document['problems']} problems")
    assert all(list(finding) == ["name", "state", "found", "fix"] for finding in document["findings"])
    assert all(bool(finding["fix"]) == (finding["state"] != "ok") for finding in document["findings"])
    broken = next(finding for finding in document["findings"] if "voice.nemo" in finding["found"])
    assert broken["state"] == "problem"
    words = ["marlowe", "secret", "s3cr3t", str(tmp_path), "/home/", f" {platform.node()} "]
    assert not [word for word in words if word in result.stdout + result.stderr]


def test_report_without_any_package_names_what_is_missing():
    """The doctor itself needs the standard library only."""
    result = run_process("-S", "-E", INFERENCE, "--doctor")
    assert result.returncode == 2 and result.stderr == ""
    assert "problem  packages      neither pip nor packaging" in result.stdout
    assert "problem  torch         not installed\n         -> source setup_env.sh" in result.stdout
    assert "ok       NeMo          not installed: only" in result.stdout
    assert "arithmetic, memory, engine, forward pass: needs torch" in " ".join(result.stdout.split())


def test_torch_that_cannot_be_imported_is_a_problem(package):
    """Checks that need torch are listed in one line."""
    folder = package("torch", "2.9.0+cpu", "raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    result = run_process(
        INFERENCE, "--doctor", env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"}
    )
    assert result.returncode == 2
    assert "2.9.0+cpu cannot be imported: libtorch_cpu.so" in result.stdout
    fix = "pip install --force-reinstall torch==2.9.0+cpu --index-url https://download.pytorch.org/whl/cpu"
    assert f"-> {fix}\n" in result.stdout
    assert "forward pass: needs torch" in " ".join(result.stdout.split())


def test_torch_npu_that_aborts_its_process_is_a_problem(package):
    """The device, which would import it again, is not checked; CANN, the driver and the checkpoint are."""
    import torch

    code = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"
    folder = package("torch_npu", torch.__version__.partition("+")[0], code)
    environ = {**os.environ, "PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    result = run_process(INFERENCE, "--doctor", "--device", NPU, env=environ)
    assert result.returncode == 2
    assert "problem  torch_npu     ended the process with SIGABRT" in result.stdout
    assert "problem  CANN" in result.stdout and "ok       engine" in result.stdout
    assert "device, dtypes, float32, arithmetic, forward pass: needs torch_npu" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "options, words",
    [
        ([CLIP], "omit AUDIO"),
        (["--chunk_ms", "80"], "omit --chunk_ms"),
        (["--benchmark"], "omit --benchmark"),
        (["--output_format", "srt"], "txt or json"),
    ],
)
def test_option_that_the_doctor_ignores_is_refused(cli, options, words):
    code, out, err = cli("--doctor", *options)
    assert (code, out) == (2, "") and words in err.splitlines()[-1]


def test_exit_code_is_that_of_the_worst_finding(cli, monkeypatch):
    for states, code, summary in [
        ("ok ok", 0, "all is well"),
        ("ok warning ok", 1, "1 warning"),
        ("problem warning warning", 2, "1 problem, 2 warnings"),
    ]:
        made = [Finding(state, "y", "" if state == "ok" else "z", "x") for state in states.split()]
        monkeypatch.setattr(run, "examine", lambda context, debug, made=made: made)
        assert cli("--doctor")[:2] == (code, "\n".join([*map(show, made), summary]) + "\n")


def test_report_is_colored_on_terminals_only(cli, monkeypatch):
    monkeypatch.setattr(run, "examine", lambda context, debug: [Finding("problem", "y", "z", "x")])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033" not in cli("--doctor")[1]
    assert "\033[31mproblem\033[0m  x" in show(Finding("problem", "y", "z", "x"), colored=True)


def test_long_findings_are_wrapped_and_commands_are_not():
    command = "pip install --force-reinstall torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu"
    lines = show(Finding("problem", "word " * 60, f"{command}\nsecond", "torch")).splitlines()
    assert max(map(len, lines[:-2])) <= 80 and all(line.startswith(" " * 23) for line in lines[1:-2])
    assert lines[-2:] == [f"         -> {command}", "            second"]


# ---------------------------------------------------------------- checks that crash, hang, raise


def test_check_that_crashes_or_hangs_costs_no_other(monkeypatch):
    """Each is a problem, the checks after it run, and those that need it are not checked."""
    fine = Finding(OK, "yes")
    checks = {
        "killed": Check(lambda _: os.kill(os.getpid(), signal.SIGKILL)),
        "fine": Check(lambda _: [fine]),
        "exits": Check(lambda _: os._exit(7)),
        "hangs": Check(lambda _: time.sleep(600)),
        "raises": Check(lambda _: 1 / 0),
        "depends": Check(lambda _: [fine], needs=("fine", "exits")),
        "knows": Check(lambda context: [Finding(OK, ", ".join(sorted(context.usable)))]),
    }
    monkeypatch.setattr(run, "TIMEOUT_SECONDS", 5)  # enough to fork on a busy machine
    monkeypatch.setattr(run, "CHECKS", checks)
    began = time.monotonic()
    results = list(examine(Context()))
    assert time.monotonic() - began < 30
    assert [(f.name, f.state) for f in results] == [
        ("killed", "problem"),
        ("fine", "ok"),
        ("exits", "problem"),
        ("hangs", "problem"),
        ("raises", "warning"),
        ("knows", "ok"),
        (SKIPPED, "warning"),
    ]
    assert "SIGKILL: out of memory?" in results[0].found
    assert "exit code 7" in results[2].found and "within 5 s" in results[3].found
    assert "ZeroDivisionError" in results[4].found and "--debug" in results[4].fix
    assert results[5].found == "fine, raises" and results[6].found == "depends: needs exits"


def test_ctrl_c_ends_the_doctor_and_its_check_at_once(tmp_path):
    code = (
        "import os, signal, sys, time, inference; from nemotron_npu.doctor import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
        "def slow(context): print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(600)\n"
        "run.CHECKS = {'slow': run.Check(slow)}; sys.exit(inference.main(['--doctor']))"
    )
    pid = tmp_path / "pid"
    command = [sys.executable, "-c", code, str(pid)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (pid.exists() and pid.read_text().endswith("\n")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "inference.py: interrupted\n" and process.returncode == 130
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_checks_that_need_one_missing_part_share_a_line(monkeypatch):
    def needs_soxr(_):
        raise ModuleNotFoundError("No module named 'soxr'", name="soxr")

    checks = {
        "torch": Check(lambda _: [Finding("problem", "not installed", "x")]),
        "a": Check(lambda _: [], needs=("torch",)),
        "b": Check(lambda _: [], needs=("a",)),
        "c": Check(needs_soxr),
        "d": Check(lambda _: [Finding(SKIPPED, "soxr")]),
    }
    monkeypatch.setattr(run, "CHECKS", checks)
    results = [(finding.found, finding.fix) for finding in examine(Context())][1:]
    assert results == [("a, b: needs torch", "see torch, above"), ("c, d: needs soxr", "source setup_env.sh")]
