"""setup_env.sh, sourced for real, with packages of a few bytes instead of NeMo and torch."""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from shlex import quote
from types import SimpleNamespace

import pytest
from support import make_once

PROJECT = Path(__file__).parent.parent
SHELLS = ["bash", pytest.param("zsh", marks=pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed"))]
WHEELS = ["tiny-1", "tool-1", "torch-2.9.0", "torch-2.13.0", "torch_npu-2.9.0", "torch_npu-2.13.0"]
no_cann = pytest.mark.skipif(Path("/usr/local/Ascend").exists(), reason="this machine has CANN")

# Everything in a shell that a script should leave alone, as text. Some variables change by themselves.
SNAPSHOT = {
    "bash": 'set +o; shopt -p; trap -p; alias; declare -F; pwd; printf \'<%s>\' "$@" "$IFS" "$PYTHONPATH" "$PATH"; '
    "compgen -v | grep -vE '^(_|BASH_.*|PIPESTATUS|FUNCNAME|MAPFILE|COPROC|OLDPWD|(BEFORE|AFTER))$'",
    "zsh": 'setopt; trap; alias; print -l ${(ok)functions}; pwd; printf \'<%s>\' "$@" "$IFS" "$PYTHONPATH" "$PATH"; '
    "print -l ${(ok)parameters} | grep -vE '^(_|[A-Z_]*|[0-9*@#?!$-]+|[a-z]+state|status|argv|pipestatus)$'",
}


def make_wheel(folder, name_and_version, module=None):
    """A wheel with one empty module."""
    name, version = name_and_version.split("-")
    info = f"{name}-{version}.dist-info"
    files = {
        f"{module or name}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A virtual environment to copy from, since creating one takes 4 s."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)

    return make_once(tmp_path_factory, "template", make) / "venv"


@pytest.fixture
def place(tmp_path, template):
    """A checkout with tiny requirements in a folder with a space in its name, a package index, a clean environment."""
    repo, wheels, bin, home = (tmp_path / name for name in ("the repo", "wheels", "bin", "home"))
    for folder in (repo, wheels, bin, home):
        folder.mkdir()
    shutil.copy(PROJECT / "setup_env.sh", repo)
    for folder in ("patches", "nv_one_logger_mock", "nemotron_npu"):
        shutil.copytree(PROJECT / folder, repo / folder)
    (repo / "requirements.txt").write_text("# a comment\n-r requirements-native.txt\n-r requirements-nemo.txt # too\n")
    (repo / "requirements-native.txt").write_text("torch>=2.9.0\n")
    (repo / "requirements-nemo.txt").write_text("tiny>=1  # a comment\n")
    (repo / "requirements-dev.txt").write_text("tool\n")
    (repo / "requirements-ray.txt").write_text("tool\n")
    (repo / "requirements-npu.txt").write_text("torch==2.9.0\ntorch-npu==2.9.0\n")
    for wheel in WHEELS:
        make_wheel(wheels, wheel)
    python = quote(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    (bin / "python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (bin / "python3").chmod(0o755)
    environ = {
        "HOME": str(home),
        "PATH": f"{bin}:/usr/bin:/bin",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }

    def source(script, shell="bash", **variables):
        """Run a script; `setup` in it sources setup_env.sh, from another directory."""
        script = re.sub(r"\bsetup\b", f"source {quote(str(repo / 'setup_env.sh'))}", script)
        command = [shell, *(["-f"] if shell == "zsh" else ["--norc"]), "-c", script, shell]
        return subprocess.run(command, cwd=home, env={**environ, **variables}, capture_output=True, text=True)

    def venv(*packages, folder=tmp_path / "venv"):
        """A virtual environment with some of the tiny packages, as variables for `source`."""
        shutil.copytree(template, folder, symlinks=True)
        activate = folder / "bin" / "activate"
        activate.write_text(activate.read_text().replace(str(template), str(folder)))
        for package in packages:
            with zipfile.ZipFile(
                wheels / f"{package}-py3-none-any.whl"
            ) as wheel:  # a wheel is a zip file of site-packages
                wheel.extractall(next(folder.glob("lib/python*/site-packages")))
        return {"VIRTUAL_ENV": str(folder), "PATH": f"{folder}/bin:{environ['PATH']}"}

    def copy_venvs():
        """Let ``python3 -m venv --clear FOLDER`` copy the template."""
        copy = f'rm -rf "$4" && cp -a {quote(str(template))} "$4" && sed -i "s|{template}|$4|" "$4"/bin/activate'
        script = f'#!/bin/sh\ncase $* in "-m venv --clear "*) {copy};; *) exec {python} "$@";; esac\n'
        (bin / "python3").write_text(script)

    mock = repo / "nv_one_logger_mock"
    return SimpleNamespace(
        repo=repo, wheels=wheels, bin=bin, tmp=tmp_path, mock=mock, source=source, venv=venv, copy_venvs=copy_venvs
    )


def versions(*names):
    """Shell code that prints the versions of installed packages."""
    return f'python -c "from importlib.metadata import version as v; print(*map(v, {names!r}))"'


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_creates_an_environment_once(place, shell):
    """The first call creates and fills it; later ones only activate it, within 2 s of CPU time.  zsh gets a copy."""
    if shell == "zsh":
        place.copy_venvs()
    first = place.source(f"setup; echo $?; echo $VIRTUAL_ENV; echo $PYTHONPATH; {versions('tiny', 'torch')}", shell)
    assert first.stdout.splitlines() == ["0", f"{place.repo}/.venv", str(place.mock), "1 2.13.0"], first.stderr
    assert "installing" in first.stderr and first.stderr.splitlines()[-1].startswith("setup_env.sh: ready (Python 3.")

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    later = place.source(
        "setup; echo $?; python -c 'import tiny, nv_one_logger'; deactivate", shell, PIP_FIND_LINKS="/no"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # seconds, on a busy machine too
    assert later.stdout == "0\n"
    assert len(later.stderr.splitlines()) == 1 and "ready (Python 3." in later.stderr and "torch 2.13.0" in later.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_leaves_the_shell_unchanged(place, shell):
    """Options, traps, functions, arguments, other variables and all files stay."""
    variables = place.venv("tiny-1", "torch-2.13.0")
    files = sorted(place.repo.rglob("*"))
    result = place.source(
        f"""
        set -- one 'two words'; IFS=:; trap 'true' USR1
        take() {{ {SNAPSHOT[shell]}; }}
        export PYTHONPATH={quote(str(place.mock))}
        BEFORE=$(take "$@"); setup; AFTER=$(take "$@")
        if [ "$BEFORE" = "$AFTER" ]; then echo same; else echo "$BEFORE"; echo "$AFTER"; fi
        """,
        shell,
        **variables,
    )
    assert result.stdout == "same\n", result.stderr
    assert sorted(place.repo.rglob("*")) == files, "and no file was touched, nor .venv made"


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_again_leaves_the_variables_unchanged(place, shell):
    variables = place.venv("tiny-1", "torch-2.13.0")
    show = 'echo "$PATH|$PYTHONPATH|$VIRTUAL_ENV"'
    result = place.source(f"setup; {show}; setup; {show}", shell, PYTHONPATH="/else where", **variables)
    first, second = result.stdout.splitlines()
    assert first == second and first.split("|")[1] == f"{place.mock}:/else where"


STRICT = [
    ("bash", "set -euo pipefail; shopt -s nullglob failglob; IFS=0/"),
    ("bash", "set -fCo posix"),
    pytest.param("zsh", "setopt errexit nounset nomatch noclobber", marks=SHELLS[1].marks),
    pytest.param("zsh", "emulate sh", marks=SHELLS[1].marks),
]


@pytest.mark.parametrize(("shell", "options"), STRICT)
def test_strict_shells_survive_success_and_failure(place, shell, options):
    place.venv("tiny-1", "torch-2.13.0", folder=place.repo / ".venv")
    result = place.source(f"{options}\nsetup --nope || echo failed $?; setup; echo alive; type deactivate", shell)
    assert result.stdout.splitlines()[:2] == ["failed 2", "alive"] and "function" in result.stdout, result.stderr


@pytest.mark.parametrize("torch", ["2.9.0", "3.0"])
def test_active_environment_is_used_and_its_torch_kept(place, torch):
    """A torch in the supported range stays, also one above the newest verified version."""
    make_wheel(place.wheels, "torch-3.0")
    variables = place.venv(f"torch-{torch}")
    result = place.source(f"setup; echo $VIRTUAL_ENV; {versions('tiny', 'torch')}", **variables)
    assert result.stdout.splitlines() == [variables["VIRTUAL_ENV"], f"1 {torch}"], result.stderr
    assert not (place.repo / ".venv").exists()


def test_conda_environment_is_used(place):
    environment = place.venv("tiny-1", "torch-2.13.0")["VIRTUAL_ENV"]
    result = place.source(
        f"setup; {versions('tiny')}", CONDA_PREFIX=environment, PATH=f"{environment}/bin:/usr/bin:/bin"
    )
    assert result.stdout == "1\n", result.stderr
    assert not (place.repo / ".venv").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_failing_installation_shows_a_hint(place, shell):
    """The shell keeps running, and a later call succeeds."""
    place.venv(folder=place.repo / ".venv")
    script = 'setup; echo "$? [$VIRTUAL_ENV] [$PYTHONPATH]"'
    result = place.source(script, shell, PIP_FIND_LINKS="/nowhere")
    assert result.stdout == "1 [] []\n"
    assert "source again" in result.stderr.splitlines()[-1] and "tiny" in result.stderr
    if shell == "bash":
        assert place.source(script, shell).stdout.startswith("0 "), "with an index, sourcing again is enough"


def test_dev_option_adds_the_packages_of_the_tests(place):
    variables = place.venv("tiny-1", "torch-2.13.0")
    result = place.source(f"setup; {versions('tool')} || echo without; setup --dev; {versions('tool')}", **variables)
    assert result.stdout.splitlines() == ["without", "1"]


def test_native_option_leaves_nemo_out(place):
    """A later call without the option adds it."""
    variables = place.venv()
    script = f"setup --native --dev; {versions('torch', 'tool')}; {versions('tiny')} || echo without"
    result = place.source(script, **variables)
    assert result.stdout.splitlines() == ["2.13.0 1", "without"], result.stderr
    assert place.source(f"setup; {versions('tiny')}", **variables).stdout == "1\n"


def test_unknown_option_is_refused(place):
    """An argument of the calling script is ignored."""
    variables = place.venv("tiny-1", "torch-2.13.0")
    result = place.source("setup --devel; echo $?; set -- prod; setup; echo $? $1", **variables)
    assert result.stdout.splitlines() == ["2", "0 prod"]
    assert "--devel" in result.stderr and "--dev " in result.stderr


def test_help_option_shows_the_usage_only(place):
    result = place.source("setup --help; echo $?")
    assert result.stdout == "0\n" and "source setup_env.sh --dev" in result.stderr
    assert not (place.repo / ".venv").exists()


@pytest.mark.parametrize("shell", [*SHELLS, "sh"])
def test_running_instead_of_sourcing_is_refused(place, shell):
    result = subprocess.run([shell, place.repo / "setup_env.sh"], capture_output=True, text=True)
    assert result.returncode == 2 and "source setup_env.sh" in result.stderr
    assert not (place.repo / ".venv").exists()


@pytest.mark.parametrize("damage", ["no python", "no pip", "moved"])
def test_broken_environment_of_the_clone_is_repaired(place, damage):
    place.copy_venvs()
    venv = place.repo / ".venv"
    place.venv(folder=place.tmp / "old" if damage == "moved" else venv)
    if damage == "moved":
        (place.tmp / "old").rename(venv)
    elif damage == "no python":
        (venv / "bin" / "python").unlink()
    else:
        for folder in venv.glob("lib/*/site-packages/pip*"):
            shutil.rmtree(folder)
    result = place.source(f"setup; echo $? $VIRTUAL_ENV; {versions('tiny')}")
    assert result.stdout.splitlines() == [f"0 {venv}", "1"], result.stderr


def test_active_environment_without_python_is_an_error(place):
    result = place.source("setup; echo $?", VIRTUAL_ENV="/gone")
    assert result.stdout == "1\n" and "/gone" in result.stderr and "deactivate" in result.stderr


def test_python_that_does_not_run_is_skipped(place):
    place.copy_venvs()
    (place.bin / "python3").rename(place.bin / "python3.12")
    (place.bin / "python3").write_text("#!/bin/sh\necho 'shim: no such version' >&2; exit 127\n")
    (place.bin / "python3").chmod(0o755)
    result = place.source(f"setup; {versions('tiny')}")
    assert result.stdout == "1\n", result.stderr


def test_missing_python_names_the_supported_versions(place):
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.10"):
        (place.bin / name).write_text("#!/bin/sh\necho 3.14\n")
        (place.bin / name).chmod(0o755)
    result = place.source("setup; echo $?")
    assert result.stdout == "1\n" and "3.10 to 3.13" in result.stderr


def test_package_out_of_range_is_replaced(place):
    for other in ("torch-2.8.0", "torch-3.0"):  # the newest that was tested is 2.13.0
        make_wheel(place.wheels, other)
    result = place.source(f"setup; {versions('torch')}", **place.venv("tiny-1", "torch-2.8.0"))
    assert result.stdout == "2.13.0\n", result.stderr


def test_mock_is_left_out_if_the_real_package_is_installed(place):
    make_wheel(place.wheels, "nv_one_logger_core-2.3.1", module="nv_one_logger")
    variables = place.venv("tiny-1", "torch-2.13.0", "nv_one_logger_core-2.3.1")
    assert place.source('setup; echo "$? [${PYTHONPATH-}]"', **variables).stdout == "0 []\n"


@pytest.fixture
def cann(place):
    """A pretend Ascend toolkit; its set_env.sh is as careless as real ones."""
    toolkit = place.tmp / "Ascend" / "ascend-toolkit" / "latest"
    toolkit.mkdir(parents=True)
    (toolkit.parent / "set_env.sh").write_text(
        f"""
        echo "$ASCEND_NEVER_SET"; false
        export ASCEND_TOOLKIT_HOME={toolkit} ASCEND_OPP_PATH={toolkit}/opp
        export LD_LIBRARY_PATH={toolkit}/lib64:$LD_LIBRARY_PATH PYTHONPATH={toolkit}/python:$PYTHONPATH
        export PATH={toolkit}/bin:$PATH
        """
    )
    return toolkit


@pytest.mark.parametrize("shell", SHELLS)
def test_ascend_toolkit_brings_torch_npu_and_cann_variables(place, cann, shell):
    show = 'echo "$ASCEND_OPP_PATH|$LD_LIBRARY_PATH|$PYTHONPATH|$PATH"'
    place.venv(folder=place.repo / ".venv")
    script = f"set -eu; setup; {show}; setup; {show}; {versions('torch', 'torch_npu')}; command -v python"
    first, second, found, python = place.source(script, shell, ASCEND_HOME_PATH=str(cann)).stdout.splitlines()
    assert first == second
    assert found == "2.9.0 2.9.0" and python == f"{place.repo}/.venv/bin/python"
    opp, libraries, python_path, path = first.split("|")
    assert (opp, libraries, python_path) == (f"{cann}/opp", f"{cann}/lib64", f"{place.mock}:{cann}/python")
    assert path.startswith(f"{cann}/bin:{place.repo}/.venv/bin:")


def test_cann_is_loaded_once_in_each_shell(place, cann):
    variables = place.venv("tiny-1", "torch-2.9.0", "torch_npu-2.9.0")
    script = 'setup; echo "[${LD_LIBRARY_PATH-}]"'
    assert place.source(script, ASCEND_HOME_PATH=str(cann), **variables).stdout == f"[{cann}/lib64]\n"
    variables["ASCEND_OPP_PATH"] = f"{cann}/opp"
    assert place.source(script, ASCEND_HOME_PATH=str(cann), **variables).stdout == "[]\n"


def test_torch_npu_matches_a_torch_that_is_kept(place, cann):
    variables = place.venv("tiny-1", "torch-2.13.0")
    result = place.source(f"setup; {versions('torch', 'torch_npu')}", ASCEND_HOME_PATH=str(cann), **variables)
    assert result.stdout == "2.13.0 2.13.0\n", result.stderr
    assert "torch 2.13.0 is kept" in result.stderr


def test_npu_smi_alone_brings_torch_npu(place):
    (place.bin / "npu-smi").touch(0o755)
    result = place.source(f"setup; {versions('torch_npu')}", **place.venv("tiny-1"))
    assert result.stdout == "2.9.0\n", result.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere PyPI's torch is the one that torch-npu wants")
def test_failing_torch_npu_on_x86_64_names_the_cpu_build(place, cann):
    (place.wheels / "torch-2.9.0-py3-none-any.whl").unlink()
    result = place.source("setup; echo $?", ASCEND_HOME_PATH=str(cann), **place.venv())
    assert result.stdout == "1\n"
    remedy = "pip install torch==2.9.0+cpu --index-url https://download.pytorch.org/whl/cpu"
    assert remedy in result.stderr.splitlines()[-1]


@no_cann
def test_torch_npu_without_cann_is_not_autoloaded(place):
    variables = place.venv("tiny-1", "torch-2.13.0", "torch_npu-2.13.0")
    result = place.source("setup; echo $TORCH_DEVICE_BACKEND_AUTOLOAD", **variables)
    assert result.stdout == "0\n" and "CANN was not found" in result.stderr
