"""Hostile checkpoints: the bundled one with one defect each.

``CASES`` is the table "Checkpoints" of data/messages.md, see robustness.py.
"""

from __future__ import annotations

import builtins
import bz2
import functools
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from robustness import Case
from support import ROOT

DEMO = ROOT / "demo" / "demo.nemo"
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
TOKENIZER = "40c6b7fbe28a443491ed289965f15e64_tokenizer.model"


@functools.cache
def members() -> dict[str, bytes]:
    """The bundled checkpoint's files by name."""
    with tarfile.open(DEMO) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name.removeprefix("./"): archive.extractfile(member).read() for member in files}


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(members()[WEIGHTS]), weights_only=True)


def config() -> dict:
    return yaml.safe_load(members()[CONFIG])


def weights() -> dict[str, torch.Tensor]:
    return dict(_weights())


# ---------------------------------------------------------------- putting them together


def info(name: str, size: int = 0, **fields) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def packed(files: dict[str, bytes], *strangers: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A checkpoint of ``files`` and, behind them, members of any kind."""
    entries = [*((info(f"./{name}", len(content)), content) for name, content in files.items()), *strangers]
    parts = [member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) for member, content in entries]
    return b"".join(parts) + bytes(1024)


def written(content: Callable[[], bytes] | bytes) -> Callable[[Path], list]:
    def make(folder: Path) -> list:
        path = folder / "model.nemo"
        path.write_bytes(content if isinstance(content, bytes) else content())
        return ["--model_path", path]

    return make


def replaced(name: str, content: Callable[[], bytes | None]) -> Callable[[Path], list]:
    """The bundled checkpoint with another member ``name``; without it if there is no content."""

    def build() -> bytes:
        new = content()
        files = {key: value for key, value in members().items() if key != name}
        return packed(files if new is None else {**files, name: new})

    return written(build)


def with_member(*strangers: tuple[tarfile.TarInfo, bytes]) -> Callable[[Path], list]:
    return written(lambda: packed(members(), *strangers))


def with_config(**changes) -> Callable[[Path], list]:
    """Changed values, by dotted names in which __ is the dot; ... removes one."""

    def content() -> bytes:
        changed = config()
        for place, value in changes.items():
            *parts, key = place.split("__")
            part = functools.reduce(lambda found, name: found.setdefault(name, {}), parts, changed)
            if value is ...:
                del part[key]
            else:
                part[key] = value
        return yaml.safe_dump(changed, sort_keys=False).encode()

    return replaced(CONFIG, content)


def with_target(part: str, target) -> Callable[[Path], list]:
    return with_config(**{f"{part}___target_": target})


def with_text(before: str, after: str) -> Callable[[Path], list]:
    """The config's text with a line of it replaced."""
    return replaced(CONFIG, lambda: members()[CONFIG].replace(before.encode(), after.encode(), 1))


def with_weights(change: Callable[[dict], object]) -> Callable[[Path], list]:
    """What ``change`` makes of the weights, or the weights themselves if it returns nothing."""

    def content() -> bytes:
        tensors = weights()
        return saved(change(tensors) or tensors)

    return replaced(WEIGHTS, content)


def with_pickle(
    pickled: Callable[[], bytes] | bytes, storages: dict | None = None, **options
) -> Callable[[Path], list]:
    """Weights whose data.pkl is this."""
    return replaced(WEIGHTS, lambda: zipped(pickled if isinstance(pickled, bytes) else pickled(), storages, **options))


def saved(thing, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    return buffer.getvalue()


def zipped(pickled: bytes, storages: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip as torch writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("model_weights/data.pkl", pickled)
        for key, content in (storages or {"0": bytes(64)}).items():
            archive.writestr(f"model_weights/data/{key}", content)
    return buffer.getvalue()


class Call:
    """What is unpickled by calling ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def calls(function, *args) -> Callable[[Path], list]:
    """Weights that call a function; a file shows if they did."""

    def make(folder: Path) -> list:
        filled = [
            argument.replace("FOLDER", str(folder)) if isinstance(argument, str) else argument for argument in args
        ]
        content = saved({**weights(), "encoder.extra": Call(function, *filled)})
        return replaced(WEIGHTS, lambda: content)(folder)

    return make


STORAGE = (
    b"\x80\x02}X\x01\x00\x00\x00x"  # {"x":
    b"ctorch._utils\n_rebuild_tensor_v2\n(("  # _rebuild_tensor_v2((
    b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"  # "storage", float, "0",
)


def tensor_pickle(
    count: int = 16, offset: int = 0, size: tuple = (16,), stride: tuple = (1,), kind: str = "Float"
) -> bytes:
    """The pickle of {"x": a tensor}, which claims what it likes."""
    numbers = lambda values: b"(" + b"".join(map(_number, values)) + b"t"  # noqa: E731
    start = STORAGE.replace(b"FloatStorage", f"{kind}Storage".encode())
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return start + _number(count) + b"tQ" + _number(offset) + numbers(size) + numbers(stride) + hooks + b"tRs."


def _number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def overlapping() -> bytes:
    """Two records whose bytes are the same: the zip's list says that the second lies where the first does."""
    content = bytearray(zipped(tensor_pickle(), {"0": bytes(64), "1": bytes(64)}))
    first = content.index(b"PK\1\2")
    places = []
    while first >= 0:
        places.append(first)
        first = content.find(b"PK\1\2", first + 1)
    content[places[2] + 42 : places[2] + 46] = content[places[1] + 42 : places[1] + 46]
    return bytes(content)


def beyond() -> bytes:
    content = bytearray(zipped(tensor_pickle()))
    place = content.rindex(b"PK\1\2")
    content[place + 42 : place + 46] = struct.pack("<I", 2**31)
    return bytes(content)


def twice() -> bytes:
    content = zipped(tensor_pickle(), {"0": bytes(64), "1": bytes(64)})
    return content.replace(b"model_weights/data/1", b"model_weights/data/0")


def encrypted() -> bytes:
    content = bytearray(zipped(tensor_pickle()))
    content[content.rindex(b"PK\1\2") + 8] |= 1
    return bytes(content)


def big_endian() -> bytes:
    content = io.BytesIO(members()[WEIGHTS])
    with zipfile.ZipFile(content) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (files | {"byteorder": b"big"}).items():
            archive.writestr(f"model_weights/{name}", data)
    return buffer.getvalue()


# ---------------------------------------------------------------- changes of the weights

NORM = "encoder.layers.1.norm_out.weight"


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], None]:
    def apply(tensors: dict) -> None:
        tensors[name] = change(tensors[name].clone())

    return apply


def _poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def _shared(tensors: dict) -> None:
    """A million layers of the same matrix would fit into a small file."""
    matrix = tensors["encoder.layers.0.feed_forward1.linear1.weight"]
    tensors.update({f"encoder.layers.{i}.feed_forward1.linear1.weight": matrix for i in range(100)})


def _without(prefix: str) -> Callable[[dict], dict]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


# ---------------------------------------------------------------- no files, and other files


def pipe(folder: Path) -> list:
    os.mkfifo(folder / "model.nemo")
    return ["--model_path", folder / "model.nemo"]


def directory(folder: Path) -> list:
    (folder / "model.nemo").mkdir()
    return ["--model_path", folder / "model.nemo"]


def extracted(**files: bytes | None) -> Callable[[Path], list]:
    """The bundled checkpoint extracted into a folder, with other files in it; None leaves one out."""

    def make(folder: Path) -> list:
        path = folder / "model.nemo"
        path.mkdir()
        for name, content in (
            members() | {name.replace("__", "."): content for name, content in files.items()}
        ).items():
            if content is not None:
                (path / name).write_bytes(content)
        return ["--model_path", path]

    return make


def link_loop(folder: Path) -> list:
    (folder / "model.nemo").symlink_to(folder / "model.nemo")
    return ["--model_path", folder / "model.nemo"]


@functools.cache
def _gzipped() -> bytes:
    return gzip.compress(DEMO.read_bytes(), 1)


def cut(part: float, compressed: bool = False) -> Callable[[Path], list]:
    def content() -> bytes:
        whole = _gzipped() if compressed else DEMO.read_bytes()
        return whole[: int(part * len(whole))]

    return written(content)


def flipped(folder: Path) -> list:
    content = bytearray(DEMO.read_bytes())
    content[content.index(b"model_config.yaml") + 150] ^= 1  # in the header's checksum
    return written(bytes(content))(folder)


def gzip_bomb(folder: Path) -> list:
    """30 MB of zeros in front of all else, in a file of 0.1 MB."""
    bomb = packed({}, (info("./0", 30 << 20), bytes(30 << 20)))
    return written(gzip.compress(bomb, 1))(folder)


def claims(size: int, name: str = WEIGHTS, compressed: bool = False) -> Callable[[Path], list]:
    """A member that is said to be much longer than it is."""

    def content() -> bytes:
        files = {key: value for key, value in members().items() if key != name}
        whole = packed(files, (info(f"./{name}", size), bytes(4096)))
        return gzip.compress(whole, 1) if compressed else whole

    return written(content)


def long_header(folder: Path) -> list:
    """An extended header of 30 MB, which tarfile would read into memory."""
    header = info("././@PaxHeader", 30 << 20, type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    return written(gzip.compress(header + bytes(30 << 20), 1))(folder)


def sparse() -> tarfile.TarInfo:
    return info("./sparse", type=tarfile.GNUTYPE_SPARSE)


def in_encoder(value: bytes, before: bytes = b"") -> bytes:
    """The config with one more value in its encoder, and text in front of all."""
    return before + members()[CONFIG].replace(b"\nencoder:\n", b"\nencoder:\n  extra: " + value + b"\n", 1)


def nested(levels: int) -> bytes:
    return in_encoder(b"[" * levels + b"]" * levels)


def laughs(first: str, other: str, reference: str) -> bytes:
    """References to references: nine to the ninth of the first."""
    text = first.format(0) + "[ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
    for i in range(1, 9):
        text += f"{other.format(i)}[{', '.join([reference.format(i - 1)] * 9)}]\n"
    return in_encoder(reference.format(8).encode(), text.encode())


def grows() -> bytes:
    """A text of texts: 100 to the tenth of the first."""
    text = "t0: haha\n" + "".join(f"t{i}: '{f'${{t{i - 1}}}' * 100}'\n" for i in range(1, 11))
    return in_encoder(b"${t10}", text.encode())


def other_tokenizer(change: Callable[[list[bytes]], None]) -> Callable[[], bytes]:
    """The bundled tokenizer with other pieces."""

    def content() -> bytes:
        model, pieces = members()[TOKENIZER], []
        while model[0] == 0x0A:  # a piece: a message of less than 128 bytes, all of them in front
            pieces.append(model[: 2 + model[1]])
            model = model[2 + model[1] :]
        change(pieces)
        return b"".join(pieces) + model

    return content


def _fewer(pieces: list[bytes]) -> None:
    del pieces[40:]


def _swapped(pieces: list[bytes]) -> None:
    pieces[7], pieces[8] = pieces[8], pieces[7]


def _escape(pieces: list[bytes]) -> None:
    pieces[7] = pieces[7].replace("\u2581z".encode(), b"\x1b[2J")  # clears a terminal


NOT_SAFE = "not safe to load"

CASES = [
    # what is no archive
    Case("no such file", lambda folder: ["--model_path", folder / "model.nemo"], 2, "no such file"),
    Case("a directory", directory, 2, r"is a directory without .* \(name the .nemo file in it\)"),
    Case("a folder without weights", extracted(model_weights__ckpt=None), 2, "it has no model_weights.ckpt"),
    Case("a folder with empty weights", extracted(model_weights__ckpt=b""), 2, "is broken"),
    Case("a folder without a config", extracted(model_config__yaml=None), 2, "is a directory"),
    Case("a named pipe", pipe, 2, "is a named pipe"),
    Case("`/dev/zero`", lambda folder: ["--model_path", "/dev/zero"], 2, "is a device"),
    Case("a link to itself", link_loop, 2, "cannot be read"),
    Case("empty", written(b""), 2, "is empty"),
    Case("text", written(b"hello\n" * 200), 2, "not a tar archive"),
    Case("a web page: the download needed a login", written(b"\n<!DOCTYPE html><html>"), 2, "is a web page"),
    Case("a pointer of Git LFS", written(b"version https://git-lfs.github.com/spec/v1\n"), 2, "git lfs pull"),
    Case("a zip: weights without the rest", written(lambda: members()[WEIGHTS]), 2, "is a zip archive"),
    Case("an old pickle of weights", written(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), 2, "is a pickle"),
    Case("a .gguf file", written(b"GGUF\3\0\0\0" + bytes(64)), 2, "is a .gguf file"),
    Case("a .safetensors file", written(struct.pack("<Q", 2) + b"{}" + bytes(64)), 2, "is a .safetensors file"),
    Case("an .onnx file", written(b"\x08\x08\x12\x07pytorch" + bytes(64)), 2, "is an .onnx file"),
    Case("compressed with bzip2", written(lambda: bz2.compress(DEMO.read_bytes()[:9999])), 2, "bzip2"),
    Case("compressed with xz", written(lambda: lzma.compress(DEMO.read_bytes()[:9999])), 2, "xz"),
    Case("compressed with zstd", written(b"\x28\xb5\x2f\xfd" + bytes(64)), 2, "zstd"),
    Case("an .om file", written(b"IMOD" + bytes(64)), 2, "is an .om file"),
    Case("cut short in the middle", cut(0.5), 2, "cut short"),
    Case("cut short in the middle, gzipped", cut(0.5, compressed=True), 2, "cut short"),
    Case("a flipped bit in a header", flipped, 2, "cut short"),
    # members
    Case("a member `../evil`", with_member((info("../evil", 1), b"x")), 2, f"evil: lies.*{NOT_SAFE}"),
    Case("a member with an absolute name", with_member((info("/tmp/evil", 1), b"x")), 2, NOT_SAFE),
    Case("a member in a folder", with_member((info("./a/b", 1), b"x")), 2, f"a/b: lies.*{NOT_SAFE}"),
    Case("a symbolic link", with_member((info("./a", type=tarfile.SYMTYPE, linkname="/etc"), b"")), 2, "symbolic link"),
    Case("a hard link", with_member((info("./a", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")), 2, "hard link"),
    Case("a device", with_member((info("./a", type=tarfile.CHRTYPE), b"")), 2, "a device"),
    Case("a named pipe inside", with_member((info("./a", type=tarfile.FIFOTYPE), b"")), 2, "a named pipe"),
    Case("a folder inside", with_member((info("./a", type=tarfile.DIRTYPE), b"")), 2, "a folder"),
    Case("a sparse file", with_member((sparse(), b"")), 2, "a sparse file"),
    Case("a name with a newline and an escape", with_member((info("../a\n\x1b[2Jb", 1), b"x")), 2, r"a\\n\\x1b\[2Jb"),
    Case("two configs", with_member((info(CONFIG, 5), b"a: 1\n")), 2, "model_config.yaml: is there twice"),
    Case("two files of weights", with_member((info(WEIGHTS, 1), b"x")), 2, "model_weights.ckpt: is there twice"),
    Case("2,000 members", with_member(*[(info(f"{i}"), b"") for i in range(2000)]), 2, "more than 1000 members"),
    Case("no config", replaced(CONFIG, lambda: None), 2, "it has no model_config.yaml"),
    Case("no weights", replaced(WEIGHTS, lambda: None), 2, "it has no model_weights.ckpt"),
    Case("no tokenizer", replaced(TOKENIZER, lambda: None), 2, "it has no .*tokenizer.model"),
    Case("30 MB of zeros in a gzip of 0.1 MB", gzip_bomb, 2, "decompression bomb"),
    Case("gzipped weights that claim 1 TB", claims(10**12, compressed=True), 2, "decompression bomb"),
    Case("weights that claim 1 TB", claims(10**12), 2, "cut short"),
    Case("a config of 9 MB", replaced(CONFIG, lambda: b"#" * (9 << 20)), 2, f"not 8,388,608.*{NOT_SAFE}"),
    Case("a config of 2 million values", replaced(CONFIG, lambda: b"a: [" + b"1," * (2 << 20) + b"]"), 2, NOT_SAFE),
    Case("an extended header of 30 MB", long_header, 2, f"has headers of.*{NOT_SAFE}"),
    # the config's form
    Case("a config that is not YAML", replaced(CONFIG, lambda: b"a: [1, 2"), 2, "not valid YAML"),
    Case("binary for a config", replaced(CONFIG, lambda: bytes(range(256))), 2, "not valid YAML"),
    Case("a list for a config", replaced(CONFIG, lambda: b"- 1\n"), 2, "describes no encoder"),
    Case("a YAML tag", with_text("feat_in: 80", "feat_in: !!python/object/apply:os.system [id]"), 2, NOT_SAFE),
    Case(
        "an alias bomb",
        replaced(CONFIG, lambda: laughs("a{0}: &a{0} ", "a{0}: &a{0} ", "*a{}")),
        2,
        f"aliases.*{NOT_SAFE}",
    ),
    Case(
        "a bomb of references",
        replaced(CONFIG, lambda: laughs("a{}: ", "a{}: ", '"${{a{}}}"')),
        2,
        f"references.*{NOT_SAFE}",
    ),
    Case("a text of texts of texts", replaced(CONFIG, grows), 2, f"references.*{NOT_SAFE}"),
    Case("a reference to itself", replaced(CONFIG, lambda: in_encoder(b"${encoder.extra}")), 2, "refers to itself"),
    Case("a reference to nothing", replaced(CONFIG, lambda: in_encoder(b"${encoder.other}")), 2, "what is not there"),
    Case("100,000 nested lists", replaced(CONFIG, lambda: nested(100_000)), 2, "not valid YAML"),
    Case("60 nested lists", replaced(CONFIG, lambda: nested(60)), 2, f"nested more than.*{NOT_SAFE}"),
    Case("a number of 10,000 digits", with_text("feat_in: 80", f"feat_in: 8{'0' * 10_000}"), 2, "number of"),
    # what the config names
    Case("`encoder._target_: os.system`", with_target("encoder", "os.system"), 2, f"os.system.*{NOT_SAFE}"),
    Case("`_target_` that reaches through NeMo", with_target("joint", f"nemo.{'x.' * 3}torch.hub.load"), 2, NOT_SAFE),
    Case(
        "a `_target_` further down",
        with_config(preprocessor__window={"_target_": "subprocess.run", "args": "id"}),
        2,
        f"preprocessor.window._target_: subprocess.run.*{NOT_SAFE}",
    ),
    Case("Hydra's old `cls`", with_config(encoder__cls="os.system"), 2, f"encoder.cls: os.system.*{NOT_SAFE}"),
    Case("a model class of its own", with_config(target="evil.EncDecRNNTBPEModel"), 2, "class evil.EncDec"),
    Case("another module for the class", with_target("decoder", "evil.RNNTDecoder"), 2, NOT_SAFE),
    Case("a reference to the environment", with_config(sample_rate="${oc.env:HOME}"), 2, "outside the config"),
    Case(
        "a language model elsewhere",
        with_config(decoding__greedy__ngram_lm_model="/x.nemo"),
        2,
        "not in the checkpoint",
    ),
    # other models
    Case(
        "a CTC model",
        with_config(target="nemo.collections.asr.models.EncDecCTCModelBPE"),
        2,
        "EncDecCTCModelBPE",
    ),
    Case(
        "an AED model",
        with_config(target="nemo.collections.asr.models.EncDecMultiTaskModel"),
        2,
        "EncDecMultiTaskModel",
    ),
    Case("a TDT model", with_config(model_defaults__num_tdt_durations=5, loss__loss_name="tdt"), 2, "TDT model"),
    Case(
        "another kind of encoder",
        with_target("encoder", "nemo.collections.asr.modules.ConvASREncoder"),
        2,
        "the encoder ConvASREncoder",
    ),
    # what the config requires
    Case("no encoder", with_config(encoder=...), 2, "describes no encoder"),
    Case("a list for an encoder", with_config(encoder=[1, 2]), 2, "describes no encoder"),
    Case("no `n_layers`", with_config(encoder__n_layers=...), 2, "lacks encoder.n_layers"),
    Case("`d_model: 1000000000`", with_config(encoder__d_model=10**9), 2, "d_model: 1000000000"),
    Case("`d_model: 8192`: the weights have 128", with_config(encoder__d_model=8192), 2, "the config requires"),
    Case("`n_layers: 1000000000`", with_config(encoder__n_layers=10**9), 2, "n_layers: 1000000000"),
    Case("`n_layers: 900`: the weights have 5", with_config(encoder__n_layers=900), 2, "the config requires"),
    Case("`n_layers: 4`: the weights have 5", with_config(encoder__n_layers=4), 2, "does not describe"),
    Case("`n_layers: -1`", with_config(encoder__n_layers=-1), 2, "n_layers: -1"),
    Case("`n_heads: 0`", with_config(encoder__n_heads=0), 2, "n_heads: 0"),
    Case("`n_heads: null`", with_config(encoder__n_heads=None), 2, "n_heads: null"),
    Case("`d_model: big`", with_config(encoder__d_model="big"), 2, "d_model: big"),
    Case("`window_stride: .nan`", with_config(preprocessor__window_stride=float("nan")), 2, "window_stride: nan"),
    Case("`features: 1000000000`", with_config(preprocessor__features=10**9), 2, "features: 1000000000"),
    Case(
        "`features: 64`: the weights have 80",
        with_config(preprocessor__features=64, encoder__feat_in=64),
        2,
        r"featurizer.fb has shape \[1, 80, 257\].*\[1, 64, 257\]",
    ),
    Case("`sample_rate: 8000`", with_config(preprocessor__sample_rate=8000), 2, "sample_rate: 8000, not 16000"),
    Case("a context that is no pair", with_config(encoder__att_context_size=[[70, 13, 2]]), 2, "att_context_size"),
    Case("a context of 10^9 frames", with_config(encoder__att_context_size=[[10**9, 0]]), 2, "att_context_size"),
    Case("`max_symbols: 1000000000`", with_config(decoding__greedy__max_symbols=10**9), 2, "max_symbols"),
    # the weights' zip
    Case("text for weights", replaced(WEIGHTS, lambda: b"no zip at all" * 100), 2, "is broken"),
    Case("weights cut short", replaced(WEIGHTS, lambda: members()[WEIGHTS][:-40]), 2, "is broken"),
    Case(
        "torch's format before 1.6",
        replaced(WEIGHTS, lambda: saved({"x": torch.zeros(3)}, _use_new_zipfile_serialization=False)),
        2,
        "is in the format of torch before 1.6",
    ),
    Case("another zip", replaced(WEIGHTS, lambda: zipped(b"").replace(b"data.pkl", b"data.txt")), 2, "no data.pkl"),
    Case(
        "30 MB of zeros in a compressed data.pkl",
        with_pickle(lambda: bytes(30 << 20), compression=zipfile.ZIP_DEFLATED),
        2,
        "compressed or encrypted",
    ),
    Case("an encrypted record", replaced(WEIGHTS, encrypted), 2, "compressed or encrypted"),
    Case("records that overlap", replaced(WEIGHTS, overlapping), 2, "overlaps others"),
    Case("a record beyond the end", replaced(WEIGHTS, beyond), 2, "is broken"),
    Case("two records of the same name", replaced(WEIGHTS, twice), 2, "two records"),
    Case("weights of a big-endian machine", replaced(WEIGHTS, big_endian), 2, "big-endian"),
    # the weights' pickle
    Case("a pickle that calls `os.system`", calls(os.system, "touch FOLDER/executed"), 2, f"system.*{NOT_SAFE}"),
    Case("a pickle that calls `eval`", calls(builtins.eval, "open('FOLDER/executed', 'w')"), 2, f"eval.*{NOT_SAFE}"),
    Case(
        "a pickle that calls `torch.load`",
        calls(torch.load, "FOLDER/other"),
        2,
        f"torch.serialization.load.*{NOT_SAFE}",
    ),
    Case("a pickle that calls a string", with_pickle(b"\x80\x02X\x01\x00\x00\x00x)R."), 2, NOT_SAFE),
    Case("a pickle that builds an object", with_pickle(b"\x80\x02ctypes\nSimpleNamespace\n)\x81}b."), 2, NOT_SAFE),
    Case("a reference to no storage", with_pickle(b"\x80\x02X\x01\x00\x00\x00xQ."), 2, f"unknown storage.*{NOT_SAFE}"),
    Case("a memo of 4 billion places", with_pickle(b"\x80\x02}r\xff\xff\xff\xffX\x01\x00\x00\x00xs."), 2, "is broken"),
    Case("bytes that claim 2^62", with_pickle(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x."), 2, "is broken"),
    Case("a number that claims 2 GB", with_pickle(b"\x80\x02\x8b\xff\xff\xff\x7fx."), 2, "is broken"),
    Case("100,000 nested tuples", with_pickle(b"\x80\x02" + b")" + b"\x85" * 100_000 + b"."), 2, "something else"),
    Case(
        "lists of lists: a billion of them",
        with_pickle(b"\x80\x02]" + b"q\x00(" + b"h\x00" * 9 + b"e" + b"."),
        2,
        "something else",
    ),
    Case(
        "3 MB of pickle", with_pickle(lambda: b"\x80\x02" + b"N0" * (3 << 19) + b"."), 2, f"not 2,097,152.*{NOT_SAFE}"
    ),
    Case(
        "a list for weights",
        replaced(WEIGHTS, lambda: saved([torch.zeros(3)])),
        2,
        "something other than named tensors",
    ),
    Case("a number for a weight", replaced(WEIGHTS, lambda: saved({"x": 3})), 2, "something other than named tensors"),
    Case(
        "a whole training state",
        replaced(WEIGHTS, lambda: saved({"state_dict": weights()})),
        2,
        "something other than named",
    ),
    # the weights' tensors
    Case(
        "a storage larger than its record", with_pickle(tensor_pickle(count=10**9)), 2, "claims 1,000,000,000 numbers"
    ),
    Case("a tensor larger than its storage", with_pickle(tensor_pickle(size=(10**9,))), 2, "claims a tensor of"),
    Case("strides that leave the storage", with_pickle(tensor_pickle(stride=(1000,))), 2, "claims a tensor"),
    Case(
        "a stride of 0 for 10^18 numbers",
        with_pickle(tensor_pickle(size=(10**9,) * 2, stride=(0, 0))),
        2,
        "claims a tensor",
    ),
    Case("a negative stride", with_pickle(tensor_pickle(stride=(-1,))), 2, "claims a tensor"),
    Case("a negative offset", with_pickle(tensor_pickle(offset=-4)), 2, "claims a tensor"),
    Case("a negative count", with_pickle(tensor_pickle(count=-1)), 2, NOT_SAFE),
    Case("complex numbers", with_pickle(tensor_pickle(kind="ComplexFloat")), 2, "ComplexFloatStorage"),
    Case("one matrix under 100 names", with_weights(_shared), 2, "many names"),
    Case("a weight that is missing", with_weights(lambda tensors: _without(NORM)(tensors)), 2, f"lacks {NORM}"),
    Case("all of the joint network missing", with_weights(_without("joint.")), 2, "0 numbers in joint"),
    Case(
        "a weight too many",
        with_weights(lambda tensors: tensors | {"encoder.extra": torch.zeros(1)}),
        2,
        "encoder.extra",
    ),
    Case("a weight of another shape", with_weights(_set(NORM, lambda x: x[:64])), 2, rf"{NORM} has shape \[64\]"),
    Case("a weight of int8", with_weights(_set(NORM, lambda x: x.to(torch.int8))), 2, f"{NORM} has dtype int8"),
    Case("a weight of fp8", with_weights(_set(NORM, lambda x: x.to(torch.float8_e4m3fn))), 2, "8-bit.*in float32"),
    Case("a weight of booleans", with_weights(_set(NORM, lambda x: x > 0)), 2, f"{NORM} has dtype bool"),
    Case("NaN in a weight", with_weights(_set(NORM, _poisoned(float("nan")))), 2, f"{NORM} has NaN or infinite values"),
    Case(
        "an infinite weight",
        with_weights(_set(NORM, _poisoned(float("-inf")))),
        2,
        f"{NORM} has NaN or infinite values",
    ),
    # the tokenizer
    Case("text for a tokenizer", replaced(TOKENIZER, lambda: b"not a tokenizer" * 10), 2, "not a sentencepiece model"),
    Case("a tokenizer of fewer tokens", replaced(TOKENIZER, other_tokenizer(_fewer)), 2, "has 40 tokens"),
    Case("a tokenizer of other tokens", replaced(TOKENIZER, other_tokenizer(_swapped)), 2, "as token 7"),
    Case("a token that clears the terminal", replaced(TOKENIZER, other_tokenizer(_escape)), 2, "not safe to print"),
    Case("a tokenizer of Hugging Face's", with_config(tokenizer__type="wpe"), 2, "no sentencepiece tokenizer"),
    Case("a number for a tokenizer's file", with_config(tokenizer__vocab_path=1), 2, "vocab_path: 1, not a name"),
    Case("a tokenizer elsewhere", with_config(tokenizer__model_path="/etc/passwd"), 2, "it has no /etc/passwd"),
]
