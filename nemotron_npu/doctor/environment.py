"""Checks of ``--doctor`` around the model: Python, packages, torch, triton's patches, NeMo, audio codecs, disk."""

from __future__ import annotations

import importlib.util
import io
import os
import platform
import runpy
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ..host.packages import CLONE, bundled, fits, install_command, installed, needed
from ..host.program import command
from .finding import GB, OK, PROBLEM, SETUP, SKIPPED, WARNING, Context, Finding, error_text, try_import

PYTHONS = ((3, 10), (3, 13))
FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
MIN_DISK = 0.1 * GB
REINSTALL = "pip install --force-reinstall"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
NO_NEMO = "not installed: only --engine nemo, --precision_compare and other model classes need it"


def python(_: Context) -> list[Finding]:
    """Check the version of Python."""
    libc = " ".join(platform.libc_ver())
    found = f"{platform.python_version()} on {platform.machine()}, {platform.system()} {platform.release()}, {libc}"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return [Finding(OK, found)]
    return [Finding(PROBLEM, f"{found}: 3.10 to 3.13 are supported", f"deactivate; {SETUP}")]


def packages(context: Context) -> list[Finding]:
    """Check the packages of the native engine and, where NeMo is installed or requested, those of NeMo.

    Checks of their own report that torch or NeMo is missing.
    """
    with_nemo = context.engine == "nemo" or installed("nemo-toolkit") is not None
    try:
        native = needed()
        nemos = needed("nemo") if with_nemo else []
    except ModuleNotFoundError:
        return [Finding(PROBLEM, "neither pip nor packaging is installed, so no other package can be", SETUP)]
    fix = install_command("nemo") if with_nemo else SETUP
    groups = ((native, PROBLEM, WARNING), (nemos, context.nemo_state, context.nemo_state))
    findings = []
    for requirements, if_missing, if_unfit in groups:
        unfit = [r for r in requirements if not fits(r)]
        if names := [r.name for r in unfit if not installed(r.name) and r.name not in ("torch", "nemo-toolkit")]:
            findings.append(Finding(if_missing, f"not installed: {', '.join(names)}", fix))
        if names := [f"{r.name} {installed(r.name)} (not {r.specifier})" for r in unfit if installed(r.name)]:
            findings.append(Finding(if_unfit, f"unsupported versions: {', '.join(names)}", fix))
    count = sum(fits(r) for r in (*native, *nemos))
    engines = "NeMo and the native engine" if with_nemo else "the native engine"
    return findings or [Finding(OK, f"{count} packages of {engines} are installed, in supported versions")]


def torch(_: Context) -> list[Finding]:
    """Check that torch can be imported."""
    version = installed("torch")
    if version is None:
        return [Finding(PROBLEM, "not installed", SETUP)]
    module: Any = try_import("torch")
    if isinstance(module, Exception):
        release, build = version.partition("+")[::2]
        which = f"{version} --index-url {CPU_BUILDS}" if build == "cpu" else release
        return [Finding(PROBLEM, f"{version} cannot be imported: {error_text(module)}", f"{REINSTALL} torch=={which}")]
    cuda = f"CUDA {module.version.cuda}" if module.version.cuda else "no CUDA"
    return [Finding(OK, f"{module.__version__}, {cuda}")]


def nemo(context: Context) -> list[Finding]:
    """Check that NeMo is installed if it was requested."""
    fix = install_command("nemo")
    if version := installed("nemo-toolkit"):
        return [Finding(OK, version)]
    if context.engine == "nemo":
        return [Finding(PROBLEM, NO_NEMO, fix)]
    return [Finding(OK, f"{NO_NEMO} ({fix})")]


def triton(context: Context) -> list[Finding]:
    """Check that triton's patches are applied."""
    version = installed("triton") or installed("triton-ascend")
    report = io.StringIO()
    with redirect_stdout(report), redirect_stderr(report):
        script = runpy.run_path(str(bundled("patches") / "apply.py"))  # in a clone it is in no package
        exit_code = script["main"](["--check"])
    found = "; ".join([*filter(None, [version]), *report.getvalue().splitlines()])
    if exit_code == 0:
        return [Finding(OK, found)]
    fix = "python patches/apply.py" if CLONE else "python -m nemotron_npu.patches.apply"
    return [context.without_npu_part(found, fix)]


def nv_one_logger(_: Context) -> list[Finding]:
    """Report whether NeMo will find NVIDIA's telemetry package or its mock."""
    spec = importlib.util.find_spec("nv_one_logger")
    locations = (spec and spec.submodule_search_locations) or []
    folders = [Path(location).resolve().parent for location in locations]
    if folders and bundled("nv_one_logger_mock") not in folders:
        version = installed("nv-one-logger-core") or "of unknown version"
        return [Finding(OK, f"NVIDIA's own, {version}")]
    if installed("nemo-toolkit") is None:
        return [Finding(OK, "only NeMo needs it")]
    return [Finding(OK, "the mock, which records and sends nothing")]


def audio(_: Context) -> list[Finding]:
    """Check the audio libraries, which are compiled; soundfile may load the system's libsndfile."""
    libraries: dict[str, Any] = {name: try_import(name) for name in ("soundfile", "soxr")}
    for name, library in libraries.items():
        if isinstance(library, ModuleNotFoundError):
            return [Finding(SKIPPED, name)]
        if isinstance(library, Exception):
            found = f"{name} cannot be imported: {error_text(library)}"
            return [Finding(PROBLEM, found, f"{REINSTALL} --no-deps {name}")]
    soundfile, soxr = libraries.values()
    readable = {name.lower() for name in (*soundfile.available_formats(), *soundfile.available_subtypes("OGG"))}
    formats = ", ".join(name for name in FORMATS if name in readable)
    found = f"libsndfile {soundfile.__libsndfile_version__} reads {formats}"
    if lacking := ", ".join(name for name in FORMATS if name not in readable):
        return [Finding(WARNING, f"{found}, but not {lacking}", f"{REINSTALL} --no-deps soundfile")]
    found += f"; soxr {soxr.__version__} resamples"
    av = try_import("av")
    if isinstance(av, Exception):
        lacking = (
            "PyAV is missing" if isinstance(av, ModuleNotFoundError) else f"av cannot be imported: {error_text(av)}"
        )
        return [Finding(WARNING, f"{found}; no video, m4a or webm: {lacking}", f"{REINSTALL} --no-deps av")]
    codecs = ".".join(map(str, av.library_versions["libavcodec"]))  # of the ffmpeg inside PyAV's wheel
    return [Finding(OK, f"{found}; PyAV {av.__version__} (ffmpeg's libavcodec {codecs}) decodes video, m4a, webm ...")]


def disk(context: Context) -> list[Finding]:
    """Check the free space of the folder for temporary files, where NeMo unpacks a checkpoint, and of this folder."""
    free = shutil.disk_usage(".").free
    here = Finding(OK, f"{free / GB:.1f} GB free in this folder")
    if not os.access(".", os.W_OK):
        here = Finding(WARNING, "this folder is not writable", f"{command()} --output_dir DIR ...")
    elif free < MIN_DISK:
        here = Finding(WARNING, here.found, "df -h .")
    fix = "export TMPDIR=/a/folder/with/space"
    try:
        free = shutil.disk_usage(tempfile.gettempdir()).free
    except FileNotFoundError:
        return [Finding(context.nemo_state, "no folder for temporary files is writable", fix), here]
    found = f"{free / GB:.1f} GB free for temporary files"
    checkpoint = Path(context.path).expanduser()
    if context.engine == "nemo" and checkpoint.is_file():
        free -= checkpoint.stat().st_size
        found += f", where NeMo unpacks {checkpoint.stat().st_size / GB:.1f} GB"
    temporary = Finding(OK, found) if free >= MIN_DISK else Finding(context.nemo_state, found, fix)
    return [temporary, here]
