"""Install the real torch_npu of this torch beside it, and build the CANN that it is to load, in a folder of its own.

``python tests/npu_stub/build.py`` prints the folder.  It is kept between runs, 160 MB below the user's cache folder;
pip downloads the wheel once.  Nothing is installed into the environment that runs this.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nemotron-npu-stub"
COMPANIONS = ["hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "atb", "nnopbase", "runtime"]
"""Libraries of CANN that torch_npu links: empty, over libascendcl.so, which has all names."""
CANN = re.compile(r"(acl[A-Za-z]*|Hccl|rt[A-Z]|Msprof|ge|dcmi|hccl|tdt|acltdt|ADX|Adx)\w*")
LOOKED_UP = re.compile(rb"(?<![\w.])acl[A-Za-z]*\w+(?=\0)")
"""Names in libtorch_npu.so's strings: what it looks up when it needs it."""


def missing() -> str:
    """Return what keeps the stub from being built here, or nothing."""
    absent = [tool for tool in ("gcc", "nm") if not shutil.which(tool)]
    return f"the stub of CANN needs {', '.join(absent)}" if absent else ""


def torch_npu_version() -> str:
    """Return the release of torch_npu that belongs to the torch that is installed."""
    return importlib.metadata.version("torch").partition("+")[0]


def build() -> Path:
    """Return the folder with ``torch_npu`` and ``cann``, made when missing or of older sources.

    Raises CalledProcessError when pip or gcc fails.
    """
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = CACHE / f"torch-npu-{torch_npu_version()}-{python}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "site" / ".complete").exists():
            _install(folder / "site")
        sources = b"".join((HERE / name).read_bytes() for name in ("build.py", "cann.c"))
        digest = hashlib.sha256(sources).hexdigest()
        stamp = folder / "cann" / "digest"
        if not stamp.exists() or stamp.read_text() != digest:
            _build_cann(folder / "site", folder / "cann")
            stamp.write_text(digest)
    return folder


def environment() -> dict[str, str]:
    """Return the variables with which a Python loads the real torch_npu over the stub."""
    folder = build()
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "TASK_QUEUE_ENABLE": "0"}  # each launch before the next
    return {
        **os.environ,
        **settings,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": str(folder / "cann"),
    }


def _install(site: Path) -> None:
    """Download torch_npu; ``-I`` keeps pip out of the tests' network guard."""
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*command, f"torch-npu=={torch_npu_version()}"], check=True, stdout=sys.stderr)
    (site / ".complete").touch()


def _build_cann(site: Path, out: Path) -> None:
    """Compile cann.c with every other name that torch_npu links or looks up as a function that succeeds."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    linked = set()
    for library in [*site.glob("torch_npu/lib/*.so"), *site.glob("torch_npu/*.so")]:
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        linked |= {word for word in listing.stdout.split() if CANN.fullmatch(word)}
    strings = (site / "torch_npu" / "lib" / "libtorch_npu.so").read_bytes()
    looked_up = {name.decode() for name in LOOKED_UP.findall(strings)}
    operators = {name.removesuffix("GetWorkspaceSize") for name in looked_up if re.match("aclnn[A-Z]", name)}
    runtime = (HERE / "cann.c").read_text()
    written = set(re.findall(r"\b(\w+)\(", runtime))
    others = sorted(name for name in linked | looked_up if not name.startswith("aclnn") and name not in written)
    runtime += "".join(f"long {name}(void) {{ return 0; }}\n" for name in others)
    launches = "void stub_launch(const char *);\n"
    for name in sorted(operators):
        launches += f'int {name}GetWorkspaceSize(void) {{ stub_launch("{name}"); return 0; }}\n'
        launches += f"int {name}(void) {{ return 0; }}\n"
    for name in ("InitHugeMemThreadLocal", "UnInitHugeMemThreadLocal", "ReleaseHugeMem"):
        launches += f"int {name}(void *p, int b) {{ return 0; }}\n"
    _compile(out, "ascendcl", runtime, "-lpthread")
    over = ("-Wl,--no-as-needed", f"-L{out}", "-lascendcl")
    _compile(out, "opapi", launches, *over)
    for name in COMPANIONS:
        _compile(out, name, f"int stub_{name};\n", *over)


def _compile(out: Path, name: str, source: str, *options: str) -> None:
    path = out / f"{name}.c"
    path.write_text(source)
    library = f"lib{name}.so"
    command = ["gcc", "-w", "-O0", "-shared", "-fPIC", "-o", out / library, f"-Wl,-soname,{library}", path, *options]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    print(build())
