#!/usr/bin/env python3
"""Run the tests on other CPUs, masked or emulated by qemu.

    python tests/other_cpus.py mask Haswell -- python -m pytest tests/test_dtypes.py    # any command, at real speed
    python tests/other_cpus.py row native mask-Haswell mask-Nehalem                     # rows of docs/other_cpus.md
    python tests/other_cpus.py row qemu-Haswell qemu-Nehalem                            # emulated: hours
    sudo .venv/bin/python tests/other_cpus.py row aarch64-2.9.0 aarch64-2.10.0 --tree TREE

A mask changes what the CPU claims (the CPUID instruction) and nothing else: see mask_cpuid.c.  qemu emulates every
instruction, 10 to 1000 times slower, and refuses those that the emulated CPU lacks.  Children run on the same CPU: a
mask is inherited, ``sys.executable`` of an x86-64 row is a script that starts qemu, and aarch64 programs are started by
the kernel (binfmt_misc).  Each row says what a child of a child found.

``row native`` comes first: with NeMo installed it makes the checkpoints of the tests, which the other rows reuse.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
CLIP_WORDS = "three one four one five nine two six"
MASKS = ["Nehalem", "Haswell", "Skylake-Server", "Cascadelake-Server"]
QEMU_MODELS = {  # without features that need a kernel or that qemu does not emulate: it would warn on stderr
    "Nehalem": "Nehalem",
    "Haswell": "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid",
}
ARM_MODEL = "neoverse-n1"  # Armv8.2 with dot products and float16, no SVE: qemu's nearest to the Kunpeng 920
ARM_CPUINFO = """processor\t: {index}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
SUBJECTS = ["audio", "config", "weights", "checkpoints", "engine", "dtypes", "formats", "live_input", "transcript"]
SUBJECTS += ["output_folder", "streaming"]
TEST_PACKAGES = ["pytest>=8", "pytest-xdist>=3.2", "hypothesis>=6", "jsonschema", "srt>=3", "webvtt-py>=0.5"]
TEST_PACKAGES += ["huggingface_hub>=0.34,<1.0"]
DTYPES = ["float32", "bfloat16", "int8"]
CHILD = """
import json, platform, torch
print(json.dumps([platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__]))
"""
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"


class Refused(Exception):
    """A line that ends this script with exit code 2."""


@dataclass(frozen=True)
class Machine:
    """How to run Python on another CPU: ``prefix`` + ``python`` + arguments, in ``root`` as it is called there."""

    name: str
    python: str = sys.executable
    prefix: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    root: str = str(ROOT)
    work: str = ""  # the folder of the checkpoints and the log, as it is called there

    def run(self, arguments: list[str], timeout: float, **extra: str) -> subprocess.CompletedProcess:
        """Run Python with these arguments; output as text, a time-out is exit code 124.  ``extra`` are variables."""
        variables = {
            **self.environment,
            **extra,
            "OMP_NUM_THREADS": "1",
            "PYTHONPYCACHEPREFIX": f"{self.work}/pycache",
            "TEST_CHECKPOINTS": f"{self.work}/checkpoints",
            "TEST_TIMEOUT": str(timeout),
        }
        python_path = [f"{self.root}/tests", f"{self.root}/nv_one_logger_mock", os.environ.get("PYTHONPATH")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, python_path))
        settings = [f"{name}={value}" for name, value in variables.items()]
        command = [*self.prefix, "env", "-C", self.root, *settings, self.python, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            return subprocess.CompletedProcess(command, 124, out, err + f"\nnot done after {timeout:.0f} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def need(*programs: str) -> None:
    """Refuse to go on without these programs, and name the packages of Debian that have them."""
    packages = {
        "qemu-x86_64-static": "qemu-user-static",
        "qemu-aarch64-static": "qemu-user-static",
        "unshare": "util-linux",
    }
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        names = " ".join(sorted({packages.get(program, program) for program in missing}))
        raise Refused(f"{', '.join(missing)}: not found (apt install {names})")


def mask_environment(model: str, work: Path) -> dict[str, str]:
    """Compile the mask and return the variables that put a program and its children behind it."""
    if platform.machine() != "x86_64":
        raise Refused(f"mask {model}: needs an x86-64 CPU (this one is {platform.machine()})")
    if model not in MASKS:
        raise Refused(f"mask {model}: unknown CPU (known: {', '.join(MASKS)})")
    need("gcc")
    library = work / "mask_cpuid.so"
    built = work / f"mask_cpuid.{os.getpid()}.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", TESTS / "mask_cpuid.c", "-o", built, "-ldl"], check=True)
    built.rename(library)  # a program that runs keeps the library that it has loaded
    variables = {"MASK_CPU": model, "LD_PRELOAD": str(library)}
    tried = subprocess.run(["true"], env={**os.environ, **variables}, capture_output=True, text=True)
    if tried.returncode:
        raise Refused(f"mask {model}: {tried.stderr.strip() or f'exit code {tried.returncode}'}")
    return variables


def masked(model: str, args: argparse.Namespace) -> Machine:
    """This machine behind a mask."""
    return Machine(f"mask-{model}", environment=mask_environment(model, args.work), work=str(args.work))


def emulated_x86(model: str, args: argparse.Namespace) -> Machine:
    """x86-64 by qemu, with the packages of this Python: a virtual environment whose ``python`` starts qemu."""
    if model not in QEMU_MODELS:
        raise Refused(f"qemu {model}: unknown CPU (known: {', '.join(QEMU_MODELS)})")
    if platform.machine() != "x86_64":
        raise Refused(f"qemu {model}: needs an x86-64 Python (this one is {platform.machine()})")
    need("qemu-x86_64-static")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = args.work / f"qemu-{model}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "bin").mkdir(parents=True)
    (place / "lib" / version).mkdir(parents=True)
    real = Path(os.path.realpath(sys.executable))
    (place / "pyvenv.cfg").write_text(f"home = {real.parent}\ninclude-system-site-packages = false\n")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (place / "lib" / version / "site-packages").symlink_to(packages)
    python = place / "bin" / "python"
    # -0: the name by which it was called, from which Python tells sys.executable and the virtual environment
    qemu = shutil.which("qemu-x86_64-static")
    python.write_text(f'#!/bin/sh\nexec {qemu} -cpu {QEMU_MODELS[model]} -0 "$0" {real} "$@"\n')
    python.chmod(0o755)
    return Machine(f"qemu-{model}", python=str(python), work=str(args.work))


def emulated_arm(torch_version: str, args: argparse.Namespace) -> Machine:
    """aarch64 by qemu: a Debian tree with PyPI's wheels and this version of torch, made if it is not there yet."""
    need("debootstrap", "qemu-aarch64-static", "unshare")
    if os.geteuid():
        raise Refused("aarch64: needs root, for chroot and mount (sudo, with this Python's full path)")
    handler = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
    if not handler.exists() or "F" not in handler.read_text().split("flags:")[1].split("\n")[0]:
        raise Refused("aarch64: the kernel does not start qemu (apt install binfmt-support qemu-user-static)")
    tree = (args.tree or args.work / "arm64").resolve()
    tree.mkdir(parents=True, exist_ok=True)
    if not (tree / "usr/bin/python3").exists():
        print(f"debootstrap into {tree} (minutes) ...", file=sys.stderr)
        run_aloud(["debootstrap", "--arch=arm64", "--include=python3-venv,ca-certificates", "bookworm", tree])
    for name in ("resolv.conf", "hosts", "ssl/certs/ca-certificates.crt"):
        shutil.copyfile(f"/etc/{name}", tree / "etc" / name)
    cpuinfo = args.work / "cpuinfo"
    cpuinfo.write_text("".join(ARM_CPUINFO.format(index=index) for index in range(os.cpu_count() or 1)))
    mounts = []
    for source, target in ((ROOT, "repo"), (args.work, "work")):
        (tree / target).mkdir(exist_ok=True)
        mounts += [f"mount --bind {source} {tree}/{target}"]
    mounts += [f"mount --rbind /{name} {tree}/{name}" for name in ("proc", "sys", "dev")]
    mounts += [f"mount --bind {cpuinfo} {tree}/proc/cpuinfo"]  # qemu's is that of this machine's CPU
    base = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", f"QEMU_CPU={ARM_MODEL}"]
    enter = "set -e\n" + "\n".join(mounts) + f'\nexec chroot {tree} env -i {" ".join(base)} "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, "sh"]
    environment = f"/opt/torch-{torch_version}"
    ready = tree / environment[1:] / "ready"
    if not ready.exists():
        print(f"installing torch {torch_version} into {tree} (minutes) ...", file=sys.stderr)
        run_aloud([*prefix, "python3", "-m", "venv", environment])
        wanted = [f"torch=={torch_version}", "-r", "/repo/requirements-native.txt", *TEST_PACKAGES]
        run_aloud([*prefix, f"{environment}/bin/pip", "install", "--quiet", "--progress-bar", "off", *wanted])
        ready.touch()
    return Machine(
        f"aarch64-{torch_version}", python=f"{environment}/bin/python", prefix=prefix, root="/repo", work="/work"
    )


def run_aloud(command: list) -> None:
    """Run a step of the preparation; what it prints goes to stderr."""
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise Refused(f"{' '.join(map(str, command[:2]))} ...: exit code {code}")


MAKERS = {"mask": masked, "qemu": emulated_x86, "aarch64": emulated_arm}


def make_machine(name: str, args: argparse.Namespace) -> Machine:
    """The machine of a row: ``native``, ``mask-CPU``, ``qemu-CPU`` or ``aarch64-TORCH``."""
    if name == "native":
        return Machine(name, work=str(args.work))
    kind, _, rest = name.partition("-")
    if kind not in MAKERS:
        raise Refused(f"{name}: unknown machine (native, mask-CPU, qemu-CPU, aarch64-TORCH)")
    return MAKERS[kind](rest, args)


def recognize_clip(machine: Machine, dtype: str, chunk_ms: int, limit: float) -> tuple[str, float]:
    """Transcribe the bundled clip with the command line: ("right" or what came instead, seconds)."""
    options = ["--device", "cpu", "--dtype", dtype, "--chunk_ms", str(chunk_ms), "--quiet"]
    begun = time.monotonic()
    result = machine.run(["inference.py", "demo/digits.wav", *options], limit)
    seconds = time.monotonic() - begun
    if result.returncode == 0:
        right = result.stdout.strip() == CLIP_WORDS
        return "right" if right else f"WRONG: {result.stdout.strip()}", seconds
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    verdict = "refused" if result.returncode == 2 else f"FAILED, exit code {result.returncode}"
    return f"{verdict}: {last.removeprefix('inference.py: ')}", seconds


def run_tests(machine: Machine, args: argparse.Namespace) -> list[dict]:
    """Run each test file in a process of its own; a record for each test: id, outcome, reason, seconds."""
    records = []
    for subject in args.tests:
        log = args.work / f"{machine.name}-{subject}.jsonl"
        log.unlink(missing_ok=True)
        options = ["-n", "0", "-q", "-p", "no:cacheprovider", "-p", "other_cpus", f"tests/test_{subject}.py"]
        there = f"{machine.work}/{log.name}"
        limits = {"OTHER_CPUS_LOG": there, "OTHER_CPUS_LIMIT": str(args.limit)}
        begun = time.monotonic()
        result = machine.run(["-m", "pytest", *options], args.file_limit, **limits)
        (args.work / f"{machine.name}-{subject}.log").write_text(result.stdout + result.stderr)
        lines = log.read_text().splitlines() if log.exists() else []
        found = merge_reports([json.loads(line) for line in lines], result)
        if result.returncode not in (0, 1) and not any(record["outcome"] == "failed" for record in found):
            message = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
            reason = f"exit code {result.returncode}: {message}"
            found.append({"id": f"tests/test_{subject}.py", "outcome": "failed", "reason": reason, "seconds": 0.0})
        counts = collections.Counter(record["outcome"] for record in found)
        print(f"{machine.name} {subject}: {dict(counts)}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
        records += found
    return records


def merge_reports(lines: list[dict], result: subprocess.CompletedProcess) -> list[dict]:
    """One record for each test from the reports of its phases; one that has begun and has no end took Python along."""
    records: dict[str, dict] = {}
    for line in lines:
        record = records.setdefault(line["id"], {"id": line["id"], "outcome": None, "reason": "", "seconds": 0.0})
        record["seconds"] += line.get("seconds", 0.0)
        if line["outcome"] and record["outcome"] in (None, "passed"):
            record.update(outcome=line["outcome"], reason=line["reason"])
    for record in records.values():
        if record["outcome"] is None:
            cut = result.returncode == 124
            record["outcome"] = "too slow" if cut else "failed"
            record["reason"] = "the file's time was over" if cut else f"Python died: exit code {result.returncode}"
    return list(records.values())


def make_row(machine: Machine, args: argparse.Namespace) -> str:
    """Everything on one machine: a line of the table, and on stderr whatever did not pass."""
    begun = time.monotonic()
    child = machine.run(["-c", PARENT], args.limit)
    if child.returncode:
        raise Refused(f"{machine.name}: {(child.stderr.strip() or 'no message').splitlines()[-1]}")
    architecture, capability, torch_version = json.loads(child.stdout)
    verdicts = {(d, ms): recognize_clip(machine, d, ms, args.limit) for d in DTYPES for ms in (80, 1120)}
    words = []
    for dtype in DTYPES:
        seen = sorted({verdicts[dtype, ms][0] for ms in (80, 1120)})
        words.append(f"{dtype} {' / '.join(seen)}")
    records = run_tests(machine, args)
    counts = collections.Counter(record["outcome"] for record in records)
    alike = collections.Counter((record["outcome"], record["reason"]) for record in records)
    for (outcome, reason), count in sorted(alike.items()):
        if outcome != "passed":
            print(f"{machine.name}: {outcome}: {count} x {reason}", file=sys.stderr)
    for record in records:
        if record["outcome"] == "failed":
            print(f"{machine.name}: failed: {record['id']}: {record['reason']}", file=sys.stderr)
    outcomes = [str(counts[outcome]) for outcome in ("passed", "failed", "skipped", "no NeMo", "too slow")]
    seconds = f"{verdicts['float32', 1120][1]:.0f}"
    minutes = f"{(time.monotonic() - begun) / 60:.0f}"
    cells = [machine.name, f"{architecture} {capability}", torch_version, *outcomes, "; ".join(words), seconds, minutes]
    return f"| {' | '.join(cells)} |"


HEAD = """\
| machine | a child reports | torch | passed | failed | skipped | no NeMo | too slow | words of the clip | its s | min |
|---|---|---|---|---|---|---|---|---|---|---|"""


# What pytest calls in a row's processes, where this file is loaded as a plugin.


def write_report(**line) -> None:
    with open(os.environ["OTHER_CPUS_LOG"], "a") as log:
        log.write(json.dumps(line) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    write_report(id=nodeid, outcome=None)


def pytest_runtest_setup() -> None:
    def give_up(number, frame):
        raise TimeoutError("test took too long for an emulator")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(os.environ["OTHER_CPUS_LIMIT"]))


def pytest_runtest_logreport(report) -> None:
    """Write down each phase that says something: a call that passed, and whatever did not."""
    if report.when == "teardown":
        signal.alarm(0)
    if report.passed and report.when != "call":
        return
    reason = ""
    outcome = report.outcome
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if "could not import 'nemo'" in reason:
            outcome = "no NeMo"
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = (crash.message if crash else str(report.longrepr)).strip().splitlines()[0]
        if "No module named 'nemo'" in str(report.longrepr):
            outcome = "no NeMo"
        elif reason.startswith("TimeoutError: test took too long") or "subprocess.TimeoutExpired" in reason:
            outcome = "too slow"
    write_report(id=report.nodeid, outcome=outcome, reason=reason, seconds=report.duration)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, metavar="DIR", help="for checkpoints, logs and the mask's library")
    commands = parser.add_subparsers(dest="command", required=True)
    mask = commands.add_parser("mask", help="run a command, and what it starts, behind a mask")
    mask.add_argument("cpu", choices=MASKS)
    mask.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    row = commands.add_parser("row", help="run the tests on machines and print a row of the table for each")
    row.add_argument("machines", nargs="+", metavar="native | mask-CPU | qemu-CPU | aarch64-TORCH")
    row.add_argument("--tree", type=Path, metavar="DIR", help="Debian's tree for aarch64: reused, or made there")
    row.add_argument("--tests", nargs="+", default=SUBJECTS, metavar="NAME", help=f"default: {' '.join(SUBJECTS)}")
    row.add_argument("--limit", type=int, default=1200, help="seconds for a test or a clip (default: %(default)s)")
    row.add_argument("--file_limit", type=int, default=14400, help="seconds for a file (default: %(default)s)")
    args = parser.parse_args()
    args.work = (args.work or Path(tempfile.gettempdir()) / f"other-cpus-{os.getuid()}").resolve()
    (args.work / "checkpoints").mkdir(parents=True, exist_ok=True)
    try:
        if args.command == "mask":
            program = args.program[1:] if args.program[:1] == ["--"] else args.program
            if not program:
                raise Refused("mask: no command (mask CPU -- COMMAND ...)")
            if not shutil.which(program[0]):
                raise Refused(f"{program[0]}: no such program")
            os.environ.update(mask_environment(args.cpu, args.work))
            os.execvp(program[0], program)
    except (Refused, OSError) as error:
        print(f"other_cpus.py: {error}", file=sys.stderr)
        return 2
    print(HEAD, flush=True)
    code = 0
    for name in args.machines:
        try:
            print(make_row(make_machine(name, args), args), flush=True)
        except (Refused, OSError) as error:  # the other rows may do
            print(f"other_cpus.py: {error}", file=sys.stderr)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
