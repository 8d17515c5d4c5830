"""What ``--doctor`` looks at around the model: Python, packages, torch, triton's patches, NeMo, codecs, disk.

A check is a function of the ``Host`` that gives one finding or several.  It may raise what it likes: see ``doctor.py``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..checkpoint.load import NO_HUB, find_checkpoint, is_hub_id, read_config
from ..device import choose_device
from ..errors import SetupError, first_line
from ..host import ascend
from ..host.packages import CLONE, bundled, can_import, fits, install_command, installed, needed
from ..host.program import command

OK, WARNING, PROBLEM = "ok", "warning", "problem"
PYTHONS = ((3, 10), (3, 13))
FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
GB = 1e9
LITTLE = 0.1 * GB  # of disk

SETUP = install_command()


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    name: str
    """Of what was looked at."""
    state: str
    """``"ok"``, ``"warning"`` or ``"problem"``: what was asked for cannot run."""
    found: str
    """In words."""
    mend: str = ""
    """The command that mends it, or where to get what does; empty for ``"ok"``."""


class NotChecked(Exception):
    """A check needs what another one has found missing; the message is that one's name."""


class Host:
    """What was asked for, and what the checks learn for each other.

    Parameters
    ----------
    device, model_path, engine : as on the command line; None is its default.
    demo, clip : the bundled model and recording.
    """

    def __init__(self, device=None, model_path=None, engine=None, demo=None, clip=None):
        self.asked, self.model_path, self.engine = device, model_path, engine or "native"
        self.demo, self.clip = demo, clip
        self.ended: set[str] = set()
        """Names of checks that ended their process: what they imported is not imported again."""

    @cached_property
    def has_npu(self) -> bool:
        return ascend.is_here()

    @property
    def asks_npu(self) -> bool:
        return (self.asked or "").startswith("npu")

    @property
    def npu_state(self) -> str:
        """How bad it is when something is missing that only an NPU needs."""
        if self.asks_npu:
            return PROBLEM if self.device is None else WARNING  # it works nevertheless
        return WARNING if self.has_npu and not self.asked else OK

    @property
    def no_npu(self) -> str:
        """What such a line says where nothing is missing."""
        return "no NPU was asked for" if self.has_npu else "no NPU here"

    @property
    def nemo_state(self) -> str:
        """The same of what only NeMo needs."""
        return PROBLEM if self.engine == "nemo" else WARNING

    @cached_property
    def torch_or_error(self):
        """torch, or what its import raised; a second import would raise something else."""
        if "torch" in self.ended:
            return NotChecked("torch")
        try:
            import torch
        except Exception as error:  # a missing C library, a half-removed package ...
            return error
        return torch

    @property
    def torch(self):
        if isinstance(self.torch_or_error, Exception):
            raise NotChecked("torch")
        return self.torch_or_error

    @cached_property
    def torch_npu_error(self) -> Exception | None:
        """Why torch_npu cannot be imported."""
        if self.torch is None or "torch_npu" in self.ended:
            return NotChecked("torch_npu")
        try:
            import torch_npu  # noqa: F401
        except Exception as error:
            return error

    @cached_property
    def device(self):
        """The torch.device that was asked for, or the default one; None where it cannot be used."""
        if self.ended & {"torch", "torch_npu", "device"}:
            return None
        try:
            return choose_device(self.asked)[0] if self.torch else None
        except (NotChecked, SetupError):
            return None

    @property
    def path(self) -> str:
        return self.model_path or str(self.demo)

    @cached_property
    def checkpoint(self) -> Path:
        """The file.  A Hugging Face id is only looked up among what was downloaded.  Raises SetupError."""
        if not is_hub_id(self.path):
            return find_checkpoint(self.path)
        if not can_import("huggingface_hub"):
            raise SetupError(NO_HUB)
        from huggingface_hub import try_to_load_from_cache

        name = self.path.split("/")[1] + ".nemo"
        found = try_to_load_from_cache(self.path, name)
        if not isinstance(found, str):
            raise SetupError(f"{name} was not downloaded from Hugging Face yet")
        return Path(found)

    @cached_property
    def config(self) -> dict:
        """The checkpoint's, or NotChecked."""
        try:
            return read_config(self.checkpoint)
        except SetupError:
            raise NotChecked("checkpoint") from None

    @cached_property
    def smi(self) -> list[ascend.Npu] | ascend.SmiError:
        """What ``npu-smi info`` has, or why it has nothing."""
        try:
            return ascend.npus(ascend.npu_smi("info"))
        except ascend.SmiError as error:
            return error


def of_npu(host: Host, name: str, found: str, mend: str) -> Finding:
    """Something that only an NPU needs is missing."""
    state = host.npu_state
    return Finding(name, state, found, mend if state != OK else "")


def said(error: Exception) -> str:
    """What an error of somebody else's says, in one line, without what is private in it."""
    return anonymous(first_line(error).rstrip("."))


def anonymous(text: str) -> str:
    """Without the names of user and host, and without IP addresses."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")} | {platform.node()}
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    for name in names - {"", "root", "localhost", "npu", "cuda", "cpu"}:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return re.sub(r"(?<![\d.])\d{1,3}(\.\d{1,3}){3}(?![\d.])", "...", text)


# -------------------------------------------------------------------- Python and packages


def python(host: Host):
    system = f"{platform.machine()}, {platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}"
    found = f"{platform.python_version()} on {system}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        yield Finding("Python", PROBLEM, f"{found}: 3.10 to 3.13 are supported", f"deactivate; {SETUP}")
    else:
        yield Finding("Python", OK, found)


def packages(host: Host):
    """What the native engine needs, and where NeMo is installed or asked for what that needs; torch and NeMo have lines
    of their own."""
    with_nemo = host.engine == "nemo" or installed("nemo-toolkit") is not None
    try:
        own = [r for r in needed() if r.name != "torch"]
        nemos = [r for r in needed("nemo") if r.name != "nemo-toolkit"] if with_nemo else []
    except ModuleNotFoundError:
        yield Finding("packages", PROBLEM, "neither pip nor packaging is installed, so nothing else can be", SETUP)
        return
    bad = [r for r in (*own, *nemos) if not fits(r)]
    if not bad:
        whose = "NeMo and the native engine need" if with_nemo else "the native engine needs"
        yield Finding("packages", OK, f"all {len(own) + len(nemos)} that {whose} are there, in the right versions")
        return
    missing = [r.name for r in bad if installed(r.name) is None]
    for wanted, state, more, mend in (
        (own, PROBLEM, "", SETUP),
        (nemos, host.nemo_state, "; NeMo needs them", install_command("nemo")),
    ):
        names = [r.name for r in wanted if r.name in missing]
        if names:
            yield Finding("packages", state, f"not installed: {', '.join(names)}{more}", mend)
    other = [f"{r.name} {installed(r.name)} (not {r.specifier})" for r in bad if r.name not in missing]
    if other:
        mend = install_command("nemo") if with_nemo else SETUP
        yield Finding("packages", host.nemo_state, f"other versions than wanted: {', '.join(other)}", mend)


def torch(host: Host):
    found = installed("torch")
    if found is None:
        yield Finding("torch", PROBLEM, "not installed", SETUP)
        return
    module = host.torch_or_error
    if isinstance(module, Exception):
        release, _, build = found.partition("+")
        cpu = "+cpu --index-url https://download.pytorch.org/whl/cpu" if build == "cpu" else ""
        mend = f"pip install --force-reinstall torch=={release}{cpu}"
        yield Finding("torch", PROBLEM, f"{found} cannot be imported: {said(module)}", mend)
        return
    requirement = next(r for r in needed() if r.name == "torch")
    build = f"CUDA {module.version.cuda}" if module.version.cuda else "no CUDA"
    found = f"{module.__version__}, {build}"
    if not requirement.specifier.contains(module.__version__, prereleases=True):
        yield Finding("torch", WARNING, f"{found}: {requirement.specifier} is what was tested", SETUP)
    else:
        yield Finding("torch", OK, found)


# -------------------------------------------------------------------- what NeMo brings along


def triton(host: Host):
    spec = importlib.util.spec_from_file_location("apply", bundled("patches") / "apply.py")
    apply = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(apply)
    folder = apply.find_triton()
    if folder is None:
        yield Finding("triton", OK, "not installed: nothing to patch")
        return
    states = {}
    for number, (path, texts) in enumerate(apply.survey(folder).values(), 1):
        known = texts and ("applied" if path.read_text() == texts[1] else "not applied")
        states[f"patch {number} ({path.parent.name})"] = known or "fits no file of this version"
    version = installed("triton") or installed("triton-ascend") or "of unknown version"
    found = ", ".join([version, *(f"{patch} {state}" for patch, state in states.items())])
    if all(state == "applied" for state in states.values()):
        yield Finding("triton", OK, found)
    else:
        apply_them = "python patches/apply.py" if CLONE else "python -m nemotron_npu.patches.apply"
        yield of_npu(host, "triton", found, apply_them)


def nv_one_logger(host: Host):
    spec = importlib.util.find_spec("nv_one_logger")
    places = [Path(place).resolve().parent for place in spec.submodule_search_locations or []] if spec else []
    if places and bundled("nv_one_logger_mock") not in places:
        real = installed("nv-one-logger-core")
        yield Finding("nv_one_logger", OK, f"NVIDIA's own, {real or 'of unknown version'}")
    elif installed("nemo-toolkit") is None:
        yield Finding("nv_one_logger", OK, "only NeMo needs it")
    else:
        yield Finding("nv_one_logger", OK, "the mock: it does and sends nothing")


def nemo(host: Host):
    found = installed("nemo-toolkit")
    if found is None:
        found = "not installed: only --engine nemo, --precision_compare and other kinds of checkpoints need it"
        if host.engine == "nemo":
            yield Finding("NeMo", PROBLEM, found, install_command("nemo"))
        else:
            yield Finding("NeMo", OK, f"{found} ({install_command('nemo')})")
        return
    requirement = next(r for r in needed("nemo") if r.name == "nemo-toolkit")
    if not fits(requirement):
        found = f"{found}: {requirement.specifier} is what was tested"
        yield Finding("NeMo", host.nemo_state, found, install_command("nemo"))
    else:
        yield Finding("NeMo", OK, found)


def sound(host: Host):
    """Codecs.  Both libraries are compiled, and soundfile may take the system's libsndfile."""
    libraries = {}
    for name in ("soundfile", "soxr"):
        try:
            libraries[name] = importlib.import_module(name)
        except ModuleNotFoundError:
            raise NotChecked(name) from None
        except Exception as error:  # a missing C library
            yield Finding("sound", PROBLEM, f"{name} cannot be imported: {said(error)}", _reinstall(name))
            return
    soundfile, soxr = libraries.values()
    known = {name.lower() for name in (*soundfile.available_formats(), *soundfile.available_subtypes("OGG"))}
    lacks = [name for name in FORMATS if name not in known]
    found = f"libsndfile {soundfile.__libsndfile_version__} reads {', '.join(f for f in FORMATS if f in known)}"
    if lacks:
        yield Finding("sound", WARNING, f"{found}, but not {', '.join(lacks)}", _reinstall("soundfile"))
    else:
        yield Finding("sound", OK, f"{found}; soxr {soxr.__version__} resamples")


def _reinstall(package: str) -> str:
    return f"pip install --force-reinstall --no-deps {package}"


# -------------------------------------------------------------------- room


def disk(host: Host):
    bad = False
    try:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        need = host.checkpoint.stat().st_size if host.engine == "nemo" and host.config else 0
        found = f"{free / GB:.1f} GB free for temporary files"
        bad = free < need + LITTLE
        if bad:
            found += f", where NeMo unpacks {need / GB:.1f} GB" if need else ""
            yield Finding("disk", host.nemo_state, found, "export TMPDIR=/a/folder/with/space")
    except FileNotFoundError:
        bad, found = True, "no folder for temporary files is writable"
        yield Finding("disk", host.nemo_state, found, "export TMPDIR=/a/folder/with/space")
    free = shutil.disk_usage(".").free
    if not os.access(".", os.W_OK):
        yield Finding("disk", WARNING, "this folder is not writable", f"{command()} --output_dir DIR ...")
    elif free < LITTLE:
        yield Finding("disk", WARNING, f"{free / GB:.1f} GB free in this folder", "df -h .")
    elif not bad:
        yield Finding("disk", OK, f"{found}, {free / GB:.1f} GB in this folder")
