"""Thousands of broken inputs, made from good ones by a seeded random generator: each must be refused, and nothing more.

    python tests/fuzz.py checkpoint --cases 100000        # about 20 minutes
    python tests/fuzz.py saved --cases 100000             # 20 minutes
    python tests/fuzz.py audio --cases 100000             # 2 minutes
    python tests/fuzz.py media --cases 50000              # 20 minutes
    python tests/fuzz.py record --cases 50000             # 5 minutes
    python tests/fuzz.py checkpoint --first 1234 --cases 1 # one again, in this process, with its traceback

Each case ends in a recogniser that works, in finite samples, or in the error that the command line shows as one line,
within SECONDS and LIMIT.  Anything else is printed with its number: another exception, a crash of the process (which is
a child for that reason), a standstill.  Exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import collections
import copy
import faulthandler
import functools
import gzip
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3 << 30  # bytes of address space beyond what the libraries take
SECONDS = 10  # of processor time
STANDSTILL = 60  # seconds after which the process is ended


# ---------------------------------------------------------------- checkpoints

SIZES = dict(d_model=8, n_heads=2, n_layers=1, subsampling_conv_channels=4, feat_in=8, conv_kernel_size=3)
VALUES = [None, True, False, 0, 1, -1, 2, 3, 7, 10**3, 10**5, 10**9, 10**30, 0.5, float("nan"), float("inf"), -1e300]
VALUES += ["", "x", "nemo:", "../x", "a" * 3000, "rel_pos", "\x1b[2J\n", "${oc.env:HOME}", [], [[]], [1, 2], [-1, -1]]
VALUES += [{}, {"a": 1}, {"_target_": "os.system"}, "nemo.collections.asr.modules.RNNTJoint", "tdt", "agg", "wpe"]
OPCODES = (
    b"()}].012KMJGIUTXBC\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x90\x93\x94\x95\x96NQRSabcdeghijlopqrstu"
)


@functools.cache
def base() -> tuple[dict[str, bytes], dict, dict]:
    """The bundled checkpoint cut down to some kilobytes: its other members, its config, its tensors."""
    import torch
    import yaml
    from hostile_checkpoints import CONFIG, WEIGHTS, config, members, weights

    small = config()
    small["encoder"] |= SIZES
    small["preprocessor"]["features"] = SIZES["feat_in"]
    small["model_defaults"] |= {"enc_hidden": 8, "pred_hidden": 4, "joint_hidden": 4}
    small["decoder"]["prednet"]["pred_hidden"] = small["joint"]["jointnet"]["joint_hidden"] = 4
    wide, hidden = small["encoder"]["d_model"], 4
    sizes = {128: wide, 512: 4 * wide, 256: 2 * wide, 32: 4, 384: 4 * hidden, 96: hidden, 80: 8, 9: 3}
    tensors = {}
    for name, tensor in weights().items():
        if name.startswith("encoder.layers.") and not name.startswith("encoder.layers.0."):
            continue
        shape = [sizes.get(size, size) for size in tensor.shape]
        if name.startswith(("joint.enc", "joint.pred")):
            shape = [4, *([wide if "enc" in name else hidden] if len(shape) == 2 else [])]
        elif name.startswith("joint.joint_net") and len(shape) == 2:
            shape[1] = 4
        elif name.startswith("decoder.") and "lstm" in name:
            shape = [4 * hidden, *([hidden] if len(shape) == 2 else [])]
        elif "pos_bias" in name:
            shape = [2, wide // 2]
        elif name == "encoder.pre_encode.out.weight":
            shape = [wide, 4 * 2]
        for dimension, size in enumerate(shape):
            tensor = tensor.narrow(dimension, 0, size)
        tensors[name] = tensor.clone()
    torch.set_num_threads(1)
    assert yaml.safe_dump(small)
    return {name: content for name, content in members().items() if name not in (CONFIG, WEIGHTS)}, small, tensors


@functools.cache
def parts() -> dict[str, bytes]:
    """The same as members, data.pkl apart."""
    import yaml
    from hostile_checkpoints import CONFIG, WEIGHTS, saved

    others, config, tensors = base()
    return {**others, CONFIG: yaml.safe_dump(config, sort_keys=False).encode(), WEIGHTS: saved(tensors)}


def checkpoint(rng: random.Random, folder: Path) -> str:
    """Break a checkpoint somehow, and load it; what became of it in a word."""
    path = folder / "model.nemo"
    path.write_bytes(broken_checkpoint(rng))
    return load(path)


def saved(rng: random.Random, folder: Path) -> str:
    """Break a file that --save has written somehow, and load it; what became of it in a word."""
    from fuzz_saved import broken

    path = folder / "model.safetensors"
    path.write_bytes(broken(rng))
    return load(path)


def load(path: Path) -> str:
    """Load a checkpoint as the native engine does; what became of it in a word."""
    import numpy as np
    import torch

    from nemotron_npu.errors import ModelError, SetupError, Unsupported
    from nemotron_npu.recognizer import Recognizer

    try:
        recognizer = Recognizer(path, torch.device("cpu"))
        recognizer.transcribe([np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)])
        return "works"
    except SetupError as error:
        said = str(error)
        assert said.startswith(str(path)) and said.isprintable(), f"said {said!r}"
        return "refused"
    except ModelError as error:  # weights are finite, but large: the recording fails
        assert "not finite" in str(error) and str(error).isprintable(), f"said {error}"
        return "not finite"
    except Unsupported as error:
        assert str(error).isprintable(), f"said {error}"
        return "left to NeMo"


def broken_checkpoint(rng: random.Random) -> bytes:
    from hostile_checkpoints import CONFIG, WEIGHTS, packed

    files = dict(parts())
    kind = rng.choice(
        ["bytes", "bytes", "config", "config", "text", "pickle", "zip", "tensors", "members", "tokenizer"]
    )
    strangers = []
    if kind == "config":
        files[CONFIG] = broken_config(rng)
    elif kind == "text":
        files[CONFIG] = broken_bytes(rng, files[CONFIG])
    elif kind == "pickle":
        files[WEIGHTS] = broken_pickle(rng, files[WEIGHTS])
    elif kind == "zip":
        files[WEIGHTS] = broken_bytes(rng, files[WEIGHTS], (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6"))
    elif kind == "tensors":
        files[WEIGHTS] = broken_tensors(rng)
    elif kind == "members":
        name = rng.choice([*files, "x", "../x", "/x", "a/b", "", ".", "x" * 300])
        stranger = tarfile.TarInfo(name)
        stranger.type = rng.choice([tarfile.REGTYPE] * 3 + [bytes([n]) for n in b"\x0001234567ALKSDNMVXgx"])
        content = rng.randbytes(rng.choice([0, 1, 100, 5000]))
        stranger.size = rng.choice([len(content)] * 3 + [0, 10**6, 8**11 - 1])
        strangers.append((stranger, content))
        if rng.random() < 0.5:
            files.pop(rng.choice(list(files)))
    elif kind == "tokenizer":
        name = next(name for name in files if name.endswith("tokenizer.model"))
        files[name] = broken_bytes(rng, files[name])
    order = list(files.items())
    rng.shuffle(order)
    content = packed(dict(order), *strangers)
    compressed = rng.random() < 0.2
    if compressed:
        content = gzip.compress(content, 1)
    if kind == "bytes":
        content = broken_bytes(rng, content, (b"ustar", b"PK", b"encoder:", b"torch"))
    return content


def broken_bytes(rng: random.Random, content: bytes, marks: tuple[bytes, ...] = ()) -> bytes:
    """Some bytes changed, removed, repeated or inserted, often not far from one of ``marks``."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        place = rng.randrange(len(content) + 1)
        places = [at for mark in marks if (at := content.find(mark, place)) >= 0]
        if places and rng.random() < 0.8:
            place = max(0, rng.choice(places) + rng.randint(-200, 200))
        length = rng.choice([1, 1, 2, 4, 8, 100, 5000])
        match rng.randrange(6):
            case 0 | 1:
                content[place : place + 1] = bytes([rng.randrange(256)])
            case 2:
                content[place : place + length] = rng.choice([b"\0", b"\xff", b"7", b" "]) * length
            case 3:
                del content[place : place + length]
            case 4:
                content[place:place] = content[place : place + length]
            case 5:
                content[place:place] = rng.randbytes(length)
    return bytes(content) if rng.random() < 0.9 else bytes(content[: rng.randrange(len(content) + 1)])


def broken_config(rng: random.Random) -> bytes:
    import yaml

    config = changed(rng, copy.deepcopy(base()[1]))
    return yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True).encode()


def changed(rng: random.Random, config: dict) -> object:
    """A config with some other values."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        part = config
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.8:
                part = part[key]
                continue
            value = part[key]
            if isinstance(value, (int, float)) and rng.random() < 0.5:
                part[key] = rng.choice(
                    [value + 1, value - 1, 2 * value, -value, value * 1000, float(value), str(value)]
                )
            elif rng.random() < 0.2:
                del part[key]
            else:
                part[key] = copy.deepcopy(rng.choice(VALUES))
            break
    if rng.random() < 0.05:
        return rng.choice(VALUES)
    return config


def broken_pickle(rng: random.Random, weights: bytes) -> bytes:
    """Instructions of data.pkl changed, in a zip that is sound."""
    files = {}
    with zipfile.ZipFile(io.BytesIO(weights)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    content = bytearray(files[name])
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(content))
        match rng.randrange(5):
            case 0:
                content[place] = rng.choice(OPCODES)
            case 1:
                content[place:place] = bytes(rng.choice(OPCODES) for _ in range(rng.choice([1, 2, 5])))
            case 2:
                claim = struct.pack("<Q", rng.choice([1, 2**31 - 1, 2**32 - 1, 2**62, rng.getrandbits(64)]))
                content[place:place] = bytes([rng.choice(b"\x8b\x8d\x8e\x90\x95\x96XTBrj\x8a")]) + claim
            case 3:
                content = bytearray(content.replace(b"FloatStorage", rng.choice([b"ByteStorage", b"X", b"eval"]), 1))
            case 4:  # another number where there is one
                ints = [i for i in range(len(content) - 2) if content[i] in b"KM"]
                at = rng.choice(ints)
                content[at : at + 2] = pickle.dumps(rng.choice([0, 1, 200, 2**31 - 1, -1, 2**40]), 2)[2:-1]
    files[name] = bytes(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def broken_tensors(rng: random.Random) -> bytes:
    import torch
    from hostile_checkpoints import saved

    tensors: dict = dict(base()[2])
    for _ in range(rng.choice([1, 1, 2, 5])):
        name = rng.choice(list(tensors))
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor) or not 0 < tensor.numel() < 10**6:
            continue
        match rng.randrange(8):
            case 0:
                del tensors[name]
            case 1:
                tensors[rng.choice(["x", name + "x", "\n\x1b[2J", "", "encoder.layers.7.norm_out.weight"])] = tensor
            case 2:
                dtype = rng.choice([torch.int8, torch.bool, torch.int64, torch.float16, torch.float64, torch.complex64])
                tensors[name] = tensor.nan_to_num().to(dtype)
            case 3:
                tensors[name] = tensor.reshape(-1)[: rng.randrange(tensor.numel() + 1)].clone()
            case 4:
                tensors[name] = torch.full_like(
                    tensor.float(), rng.choice([float("nan"), float("inf"), 1e38, 0.0, -1e30])
                )
            case 5:
                tensors[name] = tensor.t() if tensor.dim() == 2 else tensor[None]
            case 6:
                tensors[name] = tensor[:1].expand(10**9, *tensor.shape[1:]) if tensor.dim() else tensor
            case 7:
                tensors[name] = rng.choice([None, 3, "x", [tensor], {"a": tensor}, tensor * 1e6])
    return saved(tensors)


# ---------------------------------------------------------------- audio


def audio(rng: random.Random, folder: Path) -> str:
    """Break a sound file, a stream, a manifest or a list, and read it; what became of it in a word."""
    from fuzz_audio import broken, read

    kind, content = broken(rng)
    path = folder / f"x.{kind}"
    path.write_bytes(content)
    try:
        return read(path)
    finally:
        path.unlink()


def media(rng: random.Random, folder: Path) -> str:
    """Break a container that PyAV decodes, and read it; what became of it in a word."""
    from fuzz_media import read

    return read(rng, folder)


def record(rng: random.Random, folder: Path) -> str:
    """Break the record of an output folder, and resume; what became of it in a word."""
    from fuzz_record import resume

    return resume(rng, folder)


# ---------------------------------------------------------------- running them

TARGETS = {"checkpoint": checkpoint, "saved": saved, "audio": audio, "media": media, "record": record}


def run_cases(target: str, first: int, cases: int, report) -> None:
    """Run cases in this process; ``report`` is told of each before it begins and when it is done."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for number in range(first, first + cases):
            report({"case": number})
            faulthandler.dump_traceback_later(STANDSTILL, exit=True)
            began = time.process_time()
            try:
                outcome = TARGETS[target](random.Random(number), Path(folder))
                seconds = time.process_time() - began
                report({"outcome": outcome if seconds < SECONDS else f"took {seconds:.0f} s", "seconds": seconds})
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error}"[:200]
                report({"outcome": f"{text} ({Path(where.filename).name}:{where.lineno})", "seconds": 0, "bad": True})
                if isinstance(error, KeyboardInterrupt):
                    raise


def fuzz(target: str, first: int, cases: int) -> tuple[collections.Counter, list[str]]:
    """Run cases in a child that is started again after a crash; how many ended how, and what went wrong."""
    outcomes: collections.Counter = collections.Counter()
    wrong: list[str] = []
    last, slowest = first + cases, 0.0
    while first < last:
        command = [sys.executable, __file__, target, "--first", str(first), "--cases", str(last - first), "--child"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as child:
            for line in child.stdout:
                told = json.loads(line)
                if "case" in told:
                    first = told["case"]
                    continue
                outcome = told["outcome"]
                outcomes[outcome if not told.get("bad") else "wrong"] += 1
                slowest = max(slowest, told["seconds"])
                if told.get("bad") or outcome.startswith("took"):
                    wrong.append(f"case {first}: {outcome}")
                first += 1
            child.wait()
        if first < last:  # it died in the middle of a case
            outcomes["crashed"] += 1
            wrong.append(f"case {first}: the process ended with {child.returncode}")
            first += 1
    outcomes["slowest, ms"] = round(1000 * slowest)
    return outcomes, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--cases", type=int, default=1000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case (default: 0)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    if args.child:
        out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[args.target](random.Random(-1), Path(folder))  # what is imported takes memory of its own
        run_cases(args.target, args.first, args.cases, lambda told: out.write(json.dumps(told) + "\n"))
        return 0
    if args.cases == 1:
        with tempfile.TemporaryDirectory() as folder:
            print(TARGETS[args.target](random.Random(args.first), Path(folder)))
        return 0
    began = time.perf_counter()
    outcomes, wrong = fuzz(args.target, args.first, args.cases)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{args.cases:,} cases in {time.perf_counter() - began:.0f} s:", dict(outcomes.most_common()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
