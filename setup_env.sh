# Set up the environment of nemotron-npu. Source it from bash or zsh, from any directory, as often as you like:
#
#   source setup_env.sh             install everything that running needs
#   source setup_env.sh --native    install what the native engine needs: no NeMo, a third of the space
#   source setup_env.sh --dev       also install what the tests need
#
# It uses the active virtual or conda environment, or creates .venv next to this file and activates it. It installs
# the missing packages (torch-npu too if the host has an Ascend NPU; a torch in the supported range is kept), patches
# triton, loads CANN's variables, and adds nv_one_logger_mock to PYTHONPATH unless the real package is installed.
# Without internet, PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER install the packages from a folder: see docs/offline.md.

# The caller's shell runs only this part. It evaluates the few lines that a child process prints, so that the caller's
# options, traps, functions and variables stay as they are.
if [ "${1:-}" != --child ]; then
    if [ -n "${ZSH_VERSION:-}" ]; then
        case ${ZSH_EVAL_CONTEXT:-} in
            *file*)
                eval "$(BASH_ENV='' command bash "${(%):-%x}" --child "$@" || printf 'return %s' "$?")"
                return
                ;;
        esac
    elif [ -n "${BASH_VERSION:-}" ] && (return 0 2>/dev/null); then
        eval "$(BASH_ENV='' command bash "${BASH_SOURCE[0]}" --child "$@" || printf 'return %s' "$?")"
        return
    fi
    printf 'setup_env.sh: must be sourced, from bash or zsh (source setup_env.sh)\n' >&2
    return 2 2>/dev/null || exit 2
fi

set -euo pipefail
exec 3>&1 1>&2 # lines for the caller to evaluate go to 3, everything else to the terminal

log() { printf 'setup_env.sh: %s\n' "$*"; }
die() { log "$2" && exit "$1"; }

shift
files=requirements.txt
dev=
for word; do
    case $word in
        --native) files=requirements-native.txt ;;
        --dev) dev="requirements-dev.txt requirements-ray.txt" ;;
        -h | --help) sed '/^#/!q; s/^# \{0,1\}//' "$0" && exit ;;
        -*) die 2 "$word: unknown option (use --native, --dev or --help)" ;;
        *) ;; # an argument of the script that sources this file without arguments of its own
    esac
done

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
env=${VIRTUAL_ENV:-${CONDA_PREFIX:-$here/.venv}}
python=$env/bin/python

# Run each Python instead of only finding it: some are shims that exist and fail.
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
supported() { case $(version "$1") in 3.10 | 3.11 | 3.12 | 3.13) ;; *) false ;; esac }

# Create .venv again if it does not run, or if it was moved here and would activate its old path.
works() { version "$python" && (. "$env/bin/activate" && [ "$VIRTUAL_ENV" -ef "$env" ]) 2>/dev/null; }
if [ "$env" = "$here/.venv" ] && ! works >/dev/null; then
    for base in python3 python3.12 python3.11 python3.10 python3.13 ''; do
        if supported "$base"; then break; fi
    done
    [ -n "$base" ] ||
        die 1 "Python: no Python 3.10 to 3.13 found (install one, or activate an environment that has one)"
    log "creating $env with Python $(version "$base")"
    "$base" -m venv --clear "$env" ||
        die 1 "$env: cannot be created, see above (Debian and Ubuntu: apt install python$(version "$base")-venv)"
fi
supported "$python" ||
    die 1 "$env: has no Python 3.10 to 3.13 (deactivate or remove this environment, then source again)"
has_pip() { "$python" -c 'import pip' 2>/dev/null; }
has_pip || { "$python" -m ensurepip >/dev/null && has_pip; } ||
    die 1 "$env: has no pip (install it there, or remove this environment, then source again)"

activate=
if [ -f "$env/pyvenv.cfg" ] && ! [ "$(dirname -- "$(type -P python)")" -ef "$env/bin" ]; then
    activate=$env/bin/activate
    export VIRTUAL_ENV=$env PATH=$env/bin:$PATH
fi

# The code below does not import torch: if nothing is missing, it takes well under a second.
exec "$python" - "$here" "$activate" $files $dev <<'EOF'
import os
import platform
import shutil
import subprocess
import sys

here, activate, *files = sys.argv[1:]
sys.path = [folder for folder in sys.path if folder]  # the caller's directory may contain another pip
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from shlex import quote

sys.path.append(here)
sys.dont_write_bytecode = True
from nemotron_npu.host import ascend
from nemotron_npu.host.packages import fits, installed, requirements


# Newest verified versions, which are installed if a package is missing or too old. A newer installed one is kept.
VERIFIED = {"torch": "<=2.13.0", "nemo-toolkit": "<=2.7.3", "transformers": "<5", "kaldialign": "<=0.9.1"}


def log(text):
    print("setup_env.sh:", text, flush=True)


def install(npu):
    """Install the packages that are missing or out of range; exit with a hint if that fails."""
    names = list(files)
    missing = [r for name in names for r in requirements(os.path.join(here, name)) if not fits(r)]
    wanted = [r.name for r in missing]
    keep = {name: installed(name) for name in ("torch", "torch-npu") if name not in wanted}
    keep = {name: found for name, found in keep.items() if found}
    extra = [f"{name}{newest}" for name, newest in VERIFIED.items() if name in wanted]
    cpu_torch = False
    if npu and "torch-npu" not in keep:
        pins = {r.name: r for r in requirements(os.path.join(here, "requirements-npu.txt"))}
        if "torch" in keep and not fits(pins["torch"]):
            release = keep["torch"].partition("+")[0]
            log(f"torch {release} is kept, so torch-npu {release} is installed instead of the pinned version")
            extra = [f"torch-npu=={release}.*", *(str(r) for name, r in pins.items() if "torch" not in name)]
        else:
            names.insert(0, "requirements-npu.txt")
            cpu_torch = platform.machine() == "x86_64" and "torch" not in keep
    elif not missing:
        return

    what = ", ".join(wanted or ["torch-npu"])
    if len(missing) > 9:
        what = "about 130 packages, 2 GB or more,"
    log(f"installing {what} into {sys.prefix}, which may take some minutes")
    command = [sys.executable, "-m", "pip", "install", *extra, *(f"{name}=={found}" for name, found in keep.items())]
    if not sys.stderr.isatty():
        command.append("--quiet")
    for name in names:
        command += ["-r", name]
    if subprocess.run(command, cwd=here, stdin=subprocess.DEVNULL).returncode == 0:
        invalidate_caches()
    elif cpu_torch:
        hint = "pip install torch==2.9.0+cpu --index-url https://download.pytorch.org/whl/cpu"
        log(f"pip: failed, see above (on x86_64 first run {quote(sys.executable)} -m {hint}, then source again)")
        sys.exit(1)
    else:
        hint = "check network, package index and free disk space, then source again; without internet: docs/offline.md"
        log(f"pip: failed, see above ({hint})")
        sys.exit(1)


def cann_variables(script):
    """Return the variables that CANN's set_env.sh sets, in a separate bash, where the caller's options do not apply."""
    environ = {name: value for name, value in os.environ.items() if name != "SHELLOPTS"}
    command = ["bash", "-c", '. "$0" >&2; env -0', script]
    output = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    after = dict(os.fsdecode(entry).split("=", 1) for entry in output.split(b"\0") if entry)
    for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH"):
        if name in after:
            after[name] = ":".join(dict.fromkeys(filter(None, after[name].split(":"))))
    set_by_shells = ("_", "PWD", "OLDPWD", "SHLVL")
    return {
        name: value
        for name, value in after.items()
        if value != os.environ.get(name) and name.isidentifier() and name not in set_by_shells
    }


cann_loaded = ascend.cann_is_loaded()
cann_script = ascend.find_cann()
install(npu=cann_loaded or cann_script or shutil.which("npu-smi"))
subprocess.run([sys.executable, os.path.join(here, "patches", "apply.py"), "--quiet"], stdin=subprocess.DEVNULL)

exports = cann_variables(cann_script) if cann_script and not cann_loaded else {}
mock = os.path.join(here, "nv_one_logger_mock")
python_path = list(filter(None, (exports.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")).split(":")))
if mock not in python_path and not PathFinder.find_spec("nv_one_logger", sys.path):
    exports["PYTHONPATH"] = ":".join([mock, *python_path])

parts = {"torch": "torch", "torch_npu": "torch_npu", "NeMo": "nemo-toolkit"}
versions = [f"{label} {found}" for label, name in parts.items() if (found := installed(name))]
if installed("torch_npu") and not (cann_loaded or cann_script):
    # `import torch` imports torch_npu, which fails without CANN: torch would be unusable even on the CPU.
    exports["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    versions.append("CPU only: CANN was not found")

with open(3, "w", errors="surrogateescape") as caller:
    if activate:
        print(f". {quote(activate)} || :", file=caller)
    for name, value in exports.items():
        print(f"export {name}={quote(value)}", file=caller)
versions.insert(0, f"Python {platform.python_version()}")
log(f"ready ({', '.join(versions)})")
EOF
