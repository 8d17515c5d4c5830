"""``--model_path`` -> a ``.nemo`` file on this disk -> its config, weights and tokenizer, without importing NeMo."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

from .errors import SetupError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_EXAMPLE = "nvidia/nemotron-speech-streaming-en-0.6b"
MODEL_CLASS = "EncDecRNNTBPEModel"
BROKEN = (  # what zipfile, pickle and torch raise for bytes that make no sense
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


def find_checkpoint(model_path: str) -> Path:
    """The local ``.nemo`` file for a path or a Hugging Face id (downloaded once, then taken from the hub's cache).

    Raises SetupError when there is no such file or it cannot be downloaded.
    """
    path = Path(model_path).expanduser()
    if path.is_dir():
        raise SetupError(f"{model_path}: is a directory: name the .nemo file in it")
    if path.exists():
        return path
    if is_hub_id(model_path):
        return _download(model_path)
    raise SetupError(f"{model_path}: no such file (a Hugging Face id looks like {HUB_EXAMPLE})")


def is_hub_id(model_path: str) -> bool:
    """Whether this names a model on Hugging Face rather than a file: ``owner/name`` where no such file is."""
    is_path = os.path.exists(model_path) or model_path.endswith(".nemo")
    return not is_path and HUB_ID.fullmatch(model_path) is not None


def _download(repo: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name = repo.split("/")[1] + ".nemo"  # NVIDIA names the file after the repository
    mirror = "" if os.environ.get("HF_ENDPOINT") else " (HF_ENDPOINT selects a mirror)"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name))
    except GatedRepoError as error:
        raise SetupError(f"{repo}: gated on Hugging Face: accept its terms there and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise SetupError(f"{repo}: no such model on Hugging Face, or it is private: check the id") from error
    except EntryNotFoundError as error:
        # raised too when nothing is cached and the hub cannot be reached
        if isinstance(error, FileNotFoundError):
            raise SetupError(
                f"{repo}: cannot be downloaded: no connection to Hugging Face{mirror}: "
                f"go online, or fetch {name} elsewhere and give its path"
            ) from error
        raise SetupError(f"{repo}: has no file {name}: download its .nemo file and give the path") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SetupError(
            f"{repo}: cannot be downloaded ({first_line(error)}){mirror}: "
            f"go online, or fetch {name} elsewhere and give its path"
        ) from error


def read_config(path: Path) -> dict:
    """The ``model_config.yaml`` inside a ``.nemo`` (a tar, sometimes gzipped).

    Raises SetupError when the file is not such an archive or holds a model of another class.
    """
    import yaml

    try:
        config = yaml.safe_load(_read_member(path, "model_config.yaml"))
    except yaml.YAMLError as error:
        raise SetupError(f"{path}: model_config.yaml inside is not valid YAML") from error
    if not isinstance(config, dict) or not isinstance(config.get("encoder"), dict):
        raise SetupError(f"{path}: model_config.yaml inside describes no encoder")
    target = str(config.get("target", "")).rsplit(".", 1)[-1]
    if target != MODEL_CLASS:
        raise SetupError(f"{path}: holds a {target or 'model of unknown class'}: {MODEL_CLASS} is what runs here")
    return config


def read_tokenizer(path: Path, config: dict):
    """The ``sentencepiece.SentencePieceProcessor`` inside; raises SetupError when it is missing or broken."""
    import sentencepiece

    name = str(config["tokenizer"]["model_path"]).removeprefix("nemo:")
    try:
        tokenizer = sentencepiece.SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(_read_member(path, name))
        return tokenizer
    except RuntimeError as error:
        raise SetupError(f"{path}: {name} inside is not a sentencepiece model: download it again") from error


class Tensors(dict):
    """Tensors by name, and the file mapping that they lie in; None if it is memory of their own."""

    mapping: mmap.mmap | None = None

    def release(self) -> None:
        """Give the mapping's resident pages back; they are read again when they are needed again."""
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)


def read_weights(path: Path) -> Tensors:
    """Every tensor of ``model_weights.ckpt`` by its name, on the CPU, in the dtype that it was saved in.

    A plain tar is mapped: torch's zip inside stores each tensor uncompressed and aligned, so that the tensors lie in
    the page cache, are read when they are first used, and are shared between processes.  Of a gzipped tar they are
    unpacked into memory once.  Nothing is written to disk.  Only tensors can come out: see ``_Unpickler``.
    Raises SetupError when the weights are missing or broken, or hold anything but tensors.
    """
    import torch  # here: what its import raises is not the checkpoint's fault

    name = "model_weights.ckpt"
    with _opened(path) as archive:
        member = _find(path, archive, name)
        try:
            if not isinstance(archive.fileobj, io.BufferedReader):  # compressed
                buffer = _Memory(-1, max(member.size, 1))
                archive.extractfile(member).readinto(buffer)
                zipped, start = buffer, 0
            else:
                with open(path, "rb") as file:
                    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable
                zipped, start = archive.extractfile(member), member.offset_data
            with zipfile.ZipFile(zipped) as records:
                offsets = {
                    _record(info.filename): start + _data_offset(buffer, start, info) for info in _stored(records)
                }
                pickled = next(info for info in records.infolist() if _record(info.filename) == "data.pkl")
                with records.open(pickled) as file:
                    weights = _Unpickler(file, buffer, offsets).load()
        except SetupError as error:
            raise SetupError(f"{path}: {name} inside {error}") from error
        except BROKEN as error:
            raise SetupError(f"{path}: {name} inside is broken ({first_line(error)}): download it again") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise SetupError(f"{path}: {name} inside holds something else than named tensors")
    weights = Tensors(weights)
    weights.mapping = None if isinstance(buffer, _Memory) else buffer
    return weights


class _Memory(mmap.mmap):
    """Memory that zipfile can read."""

    def seekable(self) -> bool:  # mmap's own from Python 3.13 on
        return True


class Weights:
    """The tensors of a checkpoint on their way to their place: by name, in ``dtype`` on ``device``."""

    def __init__(self, tensors: Tensors, device, dtype, prefix: str = "", taken: set | None = None):
        self.tensors, self.device, self.dtype, self.prefix = tensors, device, dtype, prefix
        self.taken = set() if taken is None else taken

    def inside(self, prefix: str) -> Weights:
        """Those whose names begin with ``prefix``, without it."""
        return Weights(self.tensors, self.device, self.dtype, self.prefix + prefix, self.taken)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor; asked for is as good as taken."""
        self.taken.add(self.prefix + name)
        return self.prefix + name in self.tensors

    def __call__(self, name: str):
        """Raises SetupError when it is missing."""
        if not self.has(name):
            raise SetupError(f"the weights lack {self.prefix + name}: download the checkpoint again")
        return self.tensors[self.prefix + name].to(self.device, self.dtype)

    def release(self) -> None:
        """Let the kernel take back the pages that were read: what was copied from them is not held twice."""
        self.tensors.release()

    def left(self) -> list[str]:
        """The names that nobody asked for."""
        return [name for name in self.tensors if name not in self.taken]


def _stored(records: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The records that lie in the file as they are; torch compresses none."""
    return [info for info in records.infolist() if info.compress_type == zipfile.ZIP_STORED]


def _record(name: str) -> str:
    """A record's name without the archive's own: ``model_weights/data/0`` -> ``data/0``."""
    return name.partition("/")[2]


def _data_offset(buffer, start: int, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header of 30 bytes, its name and its padding (PKWARE, 4.3.7)."""
    name, extra = struct.unpack_from("<HH", buffer, start + info.header_offset + 26)
    return info.header_offset + 30 + name + extra


class _Unpickler(pickle.Unpickler):
    """What ``torch.load(weights_only=True)`` does for a dictionary of tensors, on tensors that stay where they lie.

    A pickle may name any function to be called.  Here only the names below mean anything; all others are refused.
    """

    DTYPES = {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
    }

    def __init__(self, file, buffer, offsets: dict[str, int]):
        super().__init__(file)
        self.buffer, self.offsets = buffer, offsets

    def find_class(self, module: str, name: str):
        import torch

        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in self.DTYPES:
            return getattr(torch, self.DTYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        raise SetupError(f"names {module}.{name}: weights hold tensors only, this is not safe to load")

    def persistent_load(self, reference):
        import torch

        _, dtype, key, _, count = reference
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=self.offsets[f"data/{key}"])


def _read_member(path: Path, name: str) -> bytes:
    with _opened(path) as archive:
        return archive.extractfile(_find(path, archive, name)).read()


def _find(path: Path, archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    member = next((m for m in archive if os.path.basename(m.name) == name and m.isfile()), None)
    if member is None:
        raise SetupError(f"{path}: not a .nemo checkpoint: no {name} inside")
    return member


@contextmanager
def _opened(path: Path):
    """The tar archive at ``path``; what goes wrong while it is read is a SetupError."""
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a tar archive, or cut short"
        raise SetupError(f"{path}: not a .nemo checkpoint ({reason}): download it again") from error


def frame_seconds(config: dict) -> float:
    """Seconds of sound in one encoder frame: the mel stride times the encoder's subsampling."""
    return float(config["preprocessor"]["window_stride"]) * int(config["encoder"]["subsampling_factor"])


def context_sizes(sizes: list | None) -> list[list[int]]:
    """``att_context_size``, one [left, right] or several, as several; -1, and none at all, is no limit."""
    sizes = sizes or [-1, -1]
    return sizes if isinstance(sizes[0], list) else [sizes]


def attention_contexts(config: dict) -> dict[int, list[int]]:
    """Chunk length in ms -> [left, right] attention context in encoder frames, in the checkpoint's order.

    A chunk of right context R is R + 1 encoder frames.  The first is the default.  Empty for a checkpoint that does
    not attend in chunks.
    """
    encoder = config["encoder"]
    if encoder.get("att_context_style") != "chunked_limited":
        return {}
    sizes = context_sizes(encoder["att_context_size"])
    return {round((right + 1) * frame_seconds(config) * 1000): [left, right] for left, right in sizes}


def choose_context(config: dict, chunk_ms: int | None) -> tuple[int | None, list[int] | None]:
    """(chunk_ms, [left, right]) for the chunk size asked for, or the checkpoint's default for None.

    Raises SetupError that names the sizes on offer.
    """
    contexts = attention_contexts(config)
    if chunk_ms is None:
        return next(iter(contexts.items()), (None, None))
    if chunk_ms not in contexts:
        offered = ", ".join(str(ms) for ms in sorted(contexts)) or "none: it does not attend in chunks"
        raise SetupError(f"--chunk_ms {chunk_ms}: this checkpoint offers {offered}")
    return chunk_ms, contexts[chunk_ms]
