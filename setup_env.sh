# Prepares the environment of nemotron-npu. Source it from bash or zsh, from any directory, as often as you like:
#
#   source setup_env.sh             what running needs
#   source setup_env.sh --native    what the native engine needs: no NeMo, a third of the space
#   source setup_env.sh --dev       and what the tests need
#
# It uses the active virtual or conda environment, or else makes .venv beside this file and activates it. It installs
# what is missing there (torch-npu too where an Ascend NPU is found; a torch that fits is kept), patches triton, loads
# CANN's variables, and puts nv_one_logger_mock on PYTHONPATH unless the real package is installed. Without internet,
# PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER take the packages from a folder: see docs/offline.md.

# The caller's shell runs this part alone: it evaluates the few lines that a child process prints, so that no option,
# trap, function or variable of the caller's can be disturbed.
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
    printf 'nemotron-npu: do not run this file, source it, from bash or zsh: source setup_env.sh\n' >&2
    return 2 2>/dev/null || exit 2
fi

set -euo pipefail
exec 3>&1 1>&2 # what the caller is to evaluate goes to 3, everything else to the terminal

say() { printf 'nemotron-npu: %s\n' "$*"; }
die() { say "$2" && exit "$1"; }

shift
files=requirements.txt
dev=
for word; do
    case $word in
        --native) files=requirements-native.txt ;;
        --dev) dev="requirements-dev.txt requirements-ray.txt" ;;
        -h | --help) sed '/^#/!q; s/^# \{0,1\}//' "$0" && exit ;;
        -*) die 2 "unknown option $word, there are --native, --dev and --help" ;;
        *) ;; # a script that sources this file without arguments hands over its own
    esac
done

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
env=${VIRTUAL_ENV:-${CONDA_PREFIX:-$here/.venv}}
python=$env/bin/python

# Pythons are run rather than looked up: there are shims that exist and fail.
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
supported() { case $(version "$1") in 3.10 | 3.11 | 3.12 | 3.13) ;; *) false ;; esac }

# A .venv that does not run, or that was moved here and would activate its old place, is made anew.
works() { version "$python" && (. "$env/bin/activate" && [ "$VIRTUAL_ENV" -ef "$env" ]) 2>/dev/null; }
if [ "$env" = "$here/.venv" ] && ! works >/dev/null; then
    for base in python3 python3.12 python3.11 python3.10 python3.13 ''; do
        if supported "$base"; then break; fi
    done
    [ -n "$base" ] || die 1 "no Python 3.10 to 3.13 found: install one or activate an environment that has one"
    say "making $env with Python $(version "$base")"
    "$base" -m venv --clear "$env" ||
        die 1 "$base could not make $env, see above (on Debian and Ubuntu: apt install python$(version "$base")-venv)"
fi
supported "$python" || die 1 "no Python 3.10 to 3.13 in $env: deactivate or remove that environment, then source again"
has_pip() { "$python" -c 'import pip' 2>/dev/null; }
has_pip || { "$python" -m ensurepip >/dev/null && has_pip; } ||
    die 1 "no pip in $env: install it there, or remove that environment, then source again"

activate=
if [ -f "$env/pyvenv.cfg" ] && ! [ "$(dirname -- "$(type -P python)")" -ef "$env/bin" ]; then
    activate=$env/bin/activate
    export VIRTUAL_ENV=$env PATH=$env/bin:$PATH
fi

# Nothing below imports torch: where nothing is missing, all this takes well under a second.
exec "$python" - "$here" "$activate" $files $dev <<'EOF'
import os
import platform
import shutil
import subprocess
import sys

here, activate, *files = sys.argv[1:]
sys.path = [folder for folder in sys.path if folder]  # the caller's directory may hold a pip of its own
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from shlex import quote

sys.path.append(here)
sys.dont_write_bytecode = True
from nemotron_npu.host import ascend
from nemotron_npu.host.packages import fits, installed, requirements


# What is installed where there is none or one too old: verified versions. A newer one that is there is kept.
VERIFIED = {"torch": "<=2.13.0", "nemo-toolkit": "<=2.7.3", "transformers": "<5", "kaldialign": "<=0.9.1"}


def say(text):
    print("nemotron-npu:", text, flush=True)


def install(npu):
    """Install what is missing or out of range; exit with a remedy if that fails."""
    names = list(files)
    missing = [r for name in names for r in requirements(os.path.join(here, name)) if not fits(r)]
    wanted = [r.name for r in missing]
    keep = {name: installed(name) for name in ("torch", "torch-npu") if name not in wanted}
    keep = {name: found for name, found in keep.items() if found}
    extra, cpu_torch = [f"{name}{bound}" for name, bound in VERIFIED.items() if name in wanted], False
    if npu and "torch-npu" not in keep:
        pins = {r.name: r for r in requirements(os.path.join(here, "requirements-npu.txt"))}
        if "torch" in keep and not fits(pins["torch"]):
            release = keep["torch"].partition("+")[0]
            say(f"torch {release} is kept, so torch-npu {release} is installed instead of the pinned one")
            extra = [f"torch-npu=={release}.*", *(str(r) for name, r in pins.items() if "torch" not in name)]
        else:
            names.insert(0, "requirements-npu.txt")
            cpu_torch = platform.machine() == "x86_64" and "torch" not in keep
    elif not missing:
        return

    what = ", ".join(wanted or ["torch-npu"])
    if len(missing) > 9:
        what = "about 130 packages, 2 GB or more,"
    say(f"installing {what} into {sys.prefix}, which may take some minutes")
    command = [sys.executable, "-m", "pip", "install", *extra, *(f"{name}=={found}" for name, found in keep.items())]
    command += [] if sys.stderr.isatty() else ["--quiet"]
    for name in names:
        command += ["-r", name]
    if subprocess.run(command, cwd=here, stdin=subprocess.DEVNULL).returncode == 0:
        invalidate_caches()
    elif cpu_torch:
        remedy = "pip install torch==2.9.0+cpu --index-url https://download.pytorch.org/whl/cpu"
        say(f"pip failed, see above: on x86_64 first run {quote(sys.executable)} -m {remedy}, then source again")
        sys.exit(1)
    else:
        say(
            "pip failed, see above: check the network, the package index and the free disk space, then source again"
            " (without internet: docs/offline.md)"
        )
        sys.exit(1)


def cann_variables(script):
    """What CANN's set_env.sh sets. It runs in a bash of its own, so that the caller's options cannot break it."""
    environ = {name: value for name, value in os.environ.items() if name != "SHELLOPTS"}
    command = ["bash", "-c", '. "$0" >&2; env -0', script]
    output = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    after = dict(os.fsdecode(entry).split("=", 1) for entry in output.split(b"\0") if entry)
    for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH"):
        if name in after:
            after[name] = ":".join(dict.fromkeys(filter(None, after[name].split(":"))))
    shells_own = ("_", "PWD", "OLDPWD", "SHLVL")
    return {
        name: value
        for name, value in after.items()
        if value != os.environ.get(name) and name.isidentifier() and name not in shells_own
    }


cann_loaded, cann_script = ascend.cann_is_loaded(), ascend.find_cann()
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
    # torch loads torch_npu by itself, which cannot load without CANN: `import torch` would fail, even for the CPU.
    exports["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    versions.append("CPU only, for CANN was not found")

with open(3, "w", errors="surrogateescape") as caller:
    if activate:
        print(f". {quote(activate)} || :", file=caller)
    for name, value in exports.items():
        print(f"export {name}={quote(value)}", file=caller)
say(f"ready ({', '.join([f'Python {platform.python_version()}', *versions])})")
EOF
