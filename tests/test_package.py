"""The package: what is in the wheel, what it can do without NeMo, and how it is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from checkpoints import TINY_SIZE, make_random_checkpoint
from support import CLIP, CLIP_WORDS, GUARD, ROOT, make_once, run_process

import nemotron_npu
from nemotron_npu.audio import read_audio
from nemotron_npu.benchmark import startup
from nemotron_npu.doctor.environment import PYTHONS
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.formats import COLLECTED, FILES
from nemotron_npu.host import packages, program
from nemotron_npu.nemo_engine import NemoRecognizer

DEMO = ROOT / "demo" / "demo.nemo"
INFERENCE = ROOT / "inference.py"
CLEAN = {**os.environ, "PYTHONPATH": str(GUARD), "OMP_NUM_THREADS": "1"}  # no mock, nothing of the clone
WITHOUT_NEMO = ROOT / "tests" / "without_nemo.py"


# ---------------------------------------------------------------- as pip installs it


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the programs of an environment that has the wheel, and sees this one's packages."""
    return make_once(tmp_path_factory, "installed", _install) / "venv" / "bin"


def _install(folder: Path) -> None:
    """Build the wheel in a copy of the clone, and install it in ``folder / "venv"``."""
    clone, wheels, venv = folder / "clone", folder / "wheels", folder / "venv"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)  # building leaves files behind
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", wheels, clone]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "these.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = wheels.glob("*.whl")
    where = ["--prefix", venv, "--ignore-installed", "--no-warn-script-location"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", *where, wheel], check=True)
    program = venv / "bin" / "nemotron-npu"
    program.write_text(program.read_text().replace(sys.executable, str(venv / "bin" / "python"), 1))


def run_installed(*command, **environ) -> subprocess.CompletedProcess:
    command = list(map(str, command))
    return subprocess.run(command, cwd="/", env={**CLEAN, **environ}, capture_output=True, text=True, timeout=300)


def test_command_and_module_are_one_program(installed):
    for command in ([installed / "nemotron-npu"], [installed / "python", "-m", "nemotron_npu"]):
        assert run_installed(*command, "--version").stdout == f"nemotron-npu {nemotron_npu.__version__}\n"
    result = run_installed(installed / "nemotron-npu", "--device", "cpu")
    assert (result.returncode, result.stdout) == (0, f"{CLIP_WORDS}\n"), result.stderr
    result = run_installed(installed / "nemotron-npu", "gone.wav")
    assert (result.returncode, result.stderr) == (1, "nemotron-npu: gone.wav: No such file or directory\n")
    assert "\n    nemotron-npu talk.mp3\n" in run_installed(installed / "nemotron-npu", "--help").stdout


def test_wheel_offers_its_mock_to_nemo(installed, tmp_path):
    """A stand-in for NeMo imports every module of the mock.  That NeMo needs no other: test_mock.py."""
    mock = ROOT / "nv_one_logger_mock"
    modules = [".".join(path.with_suffix("").relative_to(mock).parts) for path in mock.rglob("*.py")]
    names = [module.removesuffix(".__init__") for module in modules]
    (tmp_path / "nemo").mkdir()
    code = f"import sys, nv_one_logger, {', '.join(names)}; sys.exit(nv_one_logger.__file__)"
    (tmp_path / "nemo" / "__init__.py").write_text(code)
    path = os.pathsep.join([str(GUARD), str(tmp_path)])
    result = run_installed(installed / "nemotron-npu", "--engine", "nemo", "--device", "cpu", PYTHONPATH=path)
    where = installed.parent / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    assert str(where / "nemotron_npu" / "nv_one_logger_mock" / "nv_one_logger") in result.stderr, result.stderr


def test_workers_run_from_the_wheel_with_closed_streams(installed, tmp_path):
    pytest.importorskip("ray")
    options = ["--device", "cpu", "--num_workers", "2", "--output_dir", tmp_path, "--output_format", "txt"]
    closed = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", installed / "nemotron-npu", CLIP, *options]
    assert run_installed(*closed).returncode == 0
    assert (tmp_path / "digits.txt").read_text() == f"{CLIP_WORDS}\n"


def test_doctor_finds_all_parts_of_the_wheel(installed):
    result = run_installed(installed / "nemotron-npu", "--doctor", "--device", "cpu")
    assert result.stdout.endswith("all is well\n"), result.stdout
    assert "setup_env.sh" not in result.stdout and "the mock" in result.stdout


def test_wheel_requires_what_the_files_list(installed):
    code = (
        "import sys; from nemotron_npu.host import packages\n"
        "assert 'venv' in packages.__file__ and packages.CLONE is None\n"
        "for extra in packages.FILES: print(extra, sorted(str(r).partition(';')[0] for r in packages.needed(extra)))\n"
        "print(packages.install_command(), packages.install_command('nemo'))"
    )
    *lists, commands = run_installed(installed / "python", "-c", code).stdout.splitlines()
    assert lists == [f"{extra} {sorted(map(str, packages.needed(extra)))}" for extra in packages.FILES]
    assert commands == "pip install nemotron-npu pip install 'nemotron-npu[nemo]'"


def test_wheel_has_every_package_and_data_file(installed):
    """What is not listed in pyproject.toml is missing from the wheel."""
    ours = ROOT / "nemotron_npu"
    (theirs,) = (installed.parent / "lib").glob("python*/site-packages/nemotron_npu")
    files = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files <= {path.relative_to(theirs) for path in theirs.rglob("*")}


def test_benchmark_starts_the_installed_program(monkeypatch):
    for words in (["/venv/bin/nemotron-npu"], ["-X", "utf8", "-m", "nemotron_npu"]):
        monkeypatch.setattr(sys, "orig_argv", ["python", *words, "--benchmark", "--engine", "native"])
        assert startup.command() == [sys.executable, *words]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    monkeypatch.setattr(program, "CLONE", None)
    assert startup.command() == [sys.executable, "-m", "nemotron_npu"]


def test_changelog_begins_with_this_version():
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == nemotron_npu.__version__


def test_supported_pythons_agree_everywhere():
    first, last = (".".join(map(str, version)) for version in PYTHONS)
    above = f"3.{PYTHONS[1][1] + 1}"
    assert f'requires-python = ">={first},<{above}"' in (ROOT / "pyproject.toml").read_text()
    assert f"no Python {first} to {last} found" in (ROOT / "setup_env.sh").read_text()
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()


# ---------------------------------------------------------------- as a library


def test_package_import_is_cheap_and_has_its_names():
    code = (
        "import sys, nemotron_npu; assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "from nemotron_npu import ModelOptions, Recognizer, Stream, Transcript, load_recognizer\n"
        "assert set(nemotron_npu.__all__) <= set(dir(nemotron_npu))\n"
        "print(Recognizer.__module__, Transcript.__module__)"
    )
    result = run_process("-c", code, cwd=ROOT)
    assert result.stdout == "nemotron_npu.recognizer nemotron_npu.transcript\n", result.stderr
    with pytest.raises(AttributeError, match="no attribute 'recogniser'"):
        nemotron_npu.recogniser  # noqa: B018


def test_library_takes_strings_and_one_recording_or_a_list():
    """One recording gives one transcript, a list gives a list, with either engine."""
    recognizer = nemotron_npu.load_recognizer(str(DEMO), "cpu")
    for one in (str(CLIP), CLIP, read_audio(CLIP)):
        assert recognizer.transcribe(one).text == CLIP_WORDS
    assert [transcript.text for transcript in recognizer.transcribe([CLIP, str(CLIP)], 2)] == [CLIP_WORDS] * 2
    assert nemotron_npu.Recognizer(str(DEMO), "cpu", options=ModelOptions(chunk_ms=80)).chunk_ms == 80
    with pytest.raises(SetupError, match="tpu: no such device"):
        nemotron_npu.load_recognizer(str(DEMO), "tpu")
    nemo = nemotron_npu.load_recognizer(str(DEMO), "cpu", options=ModelOptions("nemo"))
    assert isinstance(nemo, NemoRecognizer) and nemo.transcribe(str(CLIP)).text == CLIP_WORDS
    assert [transcript.text for transcript in nemo.transcribe([CLIP])] == [CLIP_WORDS]


def test_library_example_of_the_readmes_works():
    """Both pages have the same code; only the comments differ."""
    codes = []
    for name in ("README.md", "README.zh-CN.md"):
        (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
        codes.append(re.sub(r" *#.*", "", code))
    assert codes[0] == codes[1]
    result = run_process("-c", codes[0], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    first, *growing = result.stdout.splitlines()
    assert first == CLIP_WORDS and growing[-1] == CLIP_WORDS


def test_mock_is_offered_only_without_the_real_package(monkeypatch, tmp_path):
    mock = str(ROOT / "nv_one_logger_mock")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != mock])
    monkeypatch.delitem(sys.modules, "nv_one_logger", raising=False)
    before = list(sys.path)
    (tmp_path / "nv_one_logger").mkdir()
    (tmp_path / "nv_one_logger" / "__init__.py").touch()
    sys.path.append(str(tmp_path))
    packages.offer_mock()
    assert sys.path == [*before, str(tmp_path)]
    sys.path.remove(str(tmp_path))
    packages.offer_mock()
    packages.offer_mock()
    assert sys.path == [*before, mock]


# ---------------------------------------------------------------- without NeMo


def run_without_nemo(*commands) -> list[tuple[str, str, str]]:
    """(exit code, stdout, stderr) of each command line, all in one process that has the native engine's packages."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    with open(CLIP, "rb") as stdin:
        result = run_process(WITHOUT_NEMO, words, cwd=ROOT, env=CLEAN, stdin=stdin)
    ended = re.compile(r"^exit (\d+)\n", re.MULTILINE)
    *outs, _ = ended.split(result.stdout)
    *errs, _ = ended.split(result.stderr)
    assert len(outs) == 2 * len(commands), result.stderr
    return list(zip(outs[1::2], outs[::2], errs[::2], strict=True))


def test_program_without_nemo_handles_files_and_streams(tmp_path):
    """Files, folders in all formats, error rates, live streams and stdin."""
    calls = tmp_path / "calls"
    calls.mkdir()
    for name in ("a.wav", "b.wav"):
        shutil.copy(CLIP, calls / name)
    manifest = tmp_path / "test.json"
    manifest.write_text(json.dumps({"audio_filepath": "calls/a.wav", "text": "three one four"}) + "\n")
    words = tmp_path / "words.txt"
    words.write_text("nine\n")
    cpu = ["--device", "cpu", "--quiet"]
    file, folder, rates, stream, stdin = run_without_nemo(
        [CLIP, *cpu, "--dtype", "float32", "--boost_words", words, "--confidence", "tsallis"],
        [calls, *cpu, "--output_dir", tmp_path / "out"],
        [manifest, *cpu, "--wer_report", "--report", tmp_path / "report"],
        [CLIP, *cpu, "--stream", "--chunk_ms", "80", "--endpoint_ms", "0"],
        ["-", *cpu, "--endpoint_ms", "0"],
    )
    assert file[:2] == stream[:2] == stdin[:2] == ("0", f"{CLIP_WORDS}\n")
    assert folder[:2] == ("0", "")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.{form}" for name in "ab" for form in FILES} | {"results.jsonl", "manifest.jsonl"}
    assert set(COLLECTED) == {"jsonl", "manifest"}
    assert rates[0] == "0" and "as written" in rates[2] and (tmp_path / "report" / "evaluation.json").exists()


def test_missing_packages_are_one_line_and_exit_code_2(tmp_path):
    other = tmp_path / "other.nemo"
    make_random_checkpoint(other, TINY_SIZE, encoder={"self_attention_model": "abs_pos"})
    ends = {
        ("--precision_compare",): "--precision_compare: needs NeMo, which is not installed (source setup_env.sh)",
        ("--engine", "nemo"): "--engine nemo: needs NeMo, which is not installed (source setup_env.sh)",
        ("--benchmark",): "--benchmark without --engine native: needs NeMo, which is not installed "
        "(source setup_env.sh)",
        (CLIP, "--device", "cpu", "--quiet", "--model_path", other): "other.nemo: not supported by the native engine: "
        "encoder.self_attention_model: abs_pos; NeMo is not installed (source setup_env.sh)",
        ("--benchmark", "--engine", "native", "--report", tmp_path): "--report: needs matplotlib, which is not "
        "installed (pip install matplotlib)",
        ("--model_path", "acme/voice", "--quiet"): "acme/voice: a Hugging Face id needs the package "
        "huggingface_hub (pip install huggingface_hub)",
        (CLIP, "--num_workers", 2): "Ray: not installed; more than one worker needs it "
        "(pip install -r requirements-ray.txt)",
    }
    results = run_without_nemo(*ends)
    assert results == [("2", "", f"inference.py: {end}\n") for end in ends.values()]


def test_doctor_without_nemo_finds_no_problem():
    """Only where NeMo was requested."""
    ((code, out, _), (nemo_code, nemo, _)) = run_without_nemo(
        ["--doctor", "--device", "cpu"], ["--doctor", "--device", "cpu", "--engine", "nemo"]
    )
    assert code == "0" and out.endswith("all is well\n"), out
    assert nemo_code == "2" and "problem  NeMo          not installed" in nemo and "-> source setup_env.sh" in nemo


# ---------------------------------------------------------------- how it is started


def in_shell(redirection: str, *words, **environ) -> subprocess.CompletedProcess:
    """Run a command in a shell with some of its streams closed."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, *map(str, words)]
    return subprocess.run(command, cwd="/", env={**CLEAN, **environ}, capture_output=True, text=True, timeout=120)


def test_closed_stderr_is_ignored():
    result = in_shell("2>&-", "-I", INFERENCE, CLIP, "--device", "cpu")
    assert (result.returncode, result.stdout) == (0, f"{CLIP_WORDS}\n")
    result = in_shell("2>&-", "-S", "-E", INFERENCE, "--doctor")
    assert result.returncode == 2 and re.match(r"\d problems", result.stdout.splitlines()[-1]), result.stdout


def test_closed_streams_do_not_affect_a_folder(tmp_path):
    arguments = [CLIP, "--device", "cpu", "--output_dir", tmp_path, "--output_format", "txt"]
    result = in_shell("<&- >&- 2>&-", INFERENCE, *arguments, PYTHONSAFEPATH="1")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "digits.txt").read_text() == f"{CLIP_WORDS}\n"
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_result_for_a_closed_stdout_is_an_error():
    result = in_shell(">&-", INFERENCE, CLIP, "--device", "cpu", "--quiet")
    assert result.returncode == 2
    assert result.stderr == "inference.py: stdout: cannot be written: Bad file descriptor\n"
    result = in_shell("<&-", INFERENCE, "-")
    assert (result.returncode, result.stderr) == (2, "inference.py: -: stdin is closed (pipe audio into it)\n")


def test_sigint_that_the_parent_ignores_stays_ignored():
    """Scripts ignore it for their background jobs.  Both entry points call ``signals.end_on_sigint``."""
    program = ["-m", "nemotron_npu", "-", "--device", "cpu", "--endpoint_ms", "0"]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, *program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(ignoring, cwd=ROOT, env=CLEAN, **pipes) as process:
        while b"loading" not in process.stderr.readline():
            process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(CLIP.read_bytes(), timeout=60)
    assert (process.returncode, out.decode()) == (0, f"{CLIP_WORDS}\n")
    for name in ("inference.py", "nemotron_npu/__main__.py"):
        assert "    signals.end_on_sigint()\n" in (ROOT / name).read_text()
