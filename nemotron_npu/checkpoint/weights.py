"""``model_weights.ckpt`` of a ``.nemo`` file -> tensors by name, without torch.load and without trusting it."""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

from ..errors import SetupError, shown
from .archive import is_gzipped, members, opened, read_into

NAME = "model_weights.ckpt"
MOST_PICKLE = 2 << 20  # bytes; 618 million parameters are listed in 126,108
MOST_DIRECTORY = 4 << 20  # bytes of the zip's list of records; the same have 52,000
MOST_DIMENSIONS = 8
BROKEN = (  # what zipfile, pickletools and torch raise for bytes that make no sense
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
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
    unpacked into memory once.  Nothing is written to disk.  Only tensors can come out, of no more bytes than the file
    has: see ``_unpickle``.  The values are not looked at here: see ``check_weight``.
    Raises SetupError when the weights are missing or broken, or hold anything but tensors, and for any member of the
    archive that a checkpoint does not have.
    """
    import torch

    buffer = start = size = None
    with opened(path) as file:
        for member in members(path, file):  # to the last: what comes behind is looked at too
            if member.name == NAME:
                size = member.size
                if is_gzipped(file):
                    start, buffer = 0, mmap.mmap(-1, max(size, 1))
                    read_into(path, file, member, buffer)
                else:  # a private mapping: torch wants it writable
                    start, buffer = member.offset, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if buffer is None:
        raise SetupError(f"{path}: not a .nemo checkpoint: no {NAME} inside")
    try:
        pickled, records = _records(_Window(buffer, start, size))
        storages = {key: (start + offset, length) for key, (offset, length) in records.items()}
        weights = _unpickle(pickled, buffer, storages)
    except SetupError as error:
        raise SetupError(f"{path}: {NAME} inside {error}") from error
    except BROKEN as error:
        raise SetupError(f"{path}: {NAME} inside is broken: download it again") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise SetupError(f"{path}: {NAME} inside holds something else than named tensors")
    if sum(weight.nbytes for weight in weights.values()) > 2 * size:  # some may be shared by two layers
        raise SetupError(f"{path}: {NAME} inside gives the same bytes many names: not safe to load")
    weights = Tensors(weights)
    weights.mapping = buffer if start else None
    return weights


def check_weight(name: str, tensor, shape: tuple) -> None:
    """Raise SetupError unless ``tensor`` has finite floating-point numbers in this shape; None stands for any length.

    Its sum is not finite if a number is not: one pass, in which the pages are read that are needed anyway.
    """
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise SetupError(f"{NAME} inside has {shown(name)} of {kind}, not of floats: download it again")
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(b not in (None, a) for a, b in zip(sizes, shape, strict=True)):
        wanted = f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
        raise SetupError(
            f"{NAME} inside has {shown(name)} of {list(sizes)}, model_config.yaml asks for {wanted}: download it again"
        )
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise SetupError(f"{NAME} inside has NaN or infinite values in {shown(name)}: download it again")


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

    def __call__(self, name: str, *shape: int | None):
        """The tensor of this name and shape, None standing for any length.

        Raises SetupError when it is missing, has another shape, or values that are no finite floats.
        """
        if not self.has(name):
            raise SetupError(f"{NAME} inside lacks {self.prefix + name}: download it again")
        name = self.prefix + name
        tensor = self.tensors[name]
        check_weight(name, tensor, shape)
        return tensor.to(self.device, self.dtype)

    def release(self) -> None:
        """Let the kernel take back the pages that were read: what was copied from them is not held twice."""
        self.tensors.release()

    def check_all_taken(self) -> None:
        """Raise SetupError if there are any that nobody asked for."""
        left = [shown(name) for name in self.tensors if name not in self.taken]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise SetupError(f"{NAME} inside has {', '.join(left[:3])}{more}, which model_config.yaml does not ask for")


# ---------------------------------------------------------------- torch's zip


def _records(window: _Window) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """What a zip of torch's holds: data.pkl, and where in the window each storage lies by its key: (offset, bytes)."""
    places: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(window) as archive:
        for info in archive.infolist():
            _, _, name = info.filename.partition("/")  # model_weights/data/0: the first part is the archive's own name
            if name in places:
                raise SetupError(f"has two records {shown(name)}: download it again")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise SetupError(f"has a record {shown(name)} that is compressed or encrypted: torch writes none")
            places[name] = _data_offset(window, info), info.file_size
    end = 0
    for name, (offset, size) in sorted(places.items(), key=lambda place: place[1]):
        if offset < end or offset + size > window.size:
            raise SetupError(f"has a record {shown(name)} that lies across others: not safe to load")
        end = offset + size
    if "byteorder" in places and window.part(*places["byteorder"], most=16) != b"little":
        raise SetupError("is of a big-endian machine: save it again on a little-endian one")
    if "data.pkl" not in places:
        raise SetupError("is a zip, but not torch's: it has no data.pkl: download it again")
    pickled = window.part(*places["data.pkl"], most=MOST_PICKLE)
    return pickled, {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}


def _data_offset(window: _Window, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header of 30 bytes, its name and its padding (PKWARE, 4.3.7)."""
    signature, name, extra = struct.unpack("<4s22xHH", window.part(info.header_offset, 30))
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile(f"no record at {info.header_offset}")
    return info.header_offset + 30 + name + extra


class _Window:
    """A part of a buffer, as a file that zipfile can read; it gets no more at once than a list of records has."""

    def __init__(self, buffer, start: int, size: int):
        self.buffer, self.start, self.size, self.position = buffer, start, size, 0

    def part(self, offset: int, size: int, most: int = MOST_DIRECTORY) -> bytes:
        if size > most:
            raise SetupError(f"has {size:,} bytes where it lists its tensors, not {most:,}: not safe to load")
        if not 0 <= offset <= offset + size <= self.size:
            raise ValueError("it ends too early")
        return self.buffer[self.start + offset : self.start + offset + size]

    def read(self, size: int = -1) -> bytes:
        left = max(self.size - self.position, 0)
        data = self.part(self.position, left if size < 0 else min(size, left))
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        if self.position < 0:
            raise ValueError("it begins before itself")
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True


# ---------------------------------------------------------------- its pickle


def _unpickle(pickled: bytes, buffer, storages: dict[str, tuple[int, int]]):
    """What ``torch.load(weights_only=True)`` does for a dictionary of tensors, on tensors that stay where they lie.

    A pickle is a program, which may name any function and have it called, or ask for memory without end.  So it is not
    given to an unpickler: these are the instructions that torch.save writes, and the five names that mean something
    to them.  Each adds at most one object, and all other instructions and names are refused.
    """
    import torch

    def find(module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in DTYPES:
            return getattr(torch, DTYPES[name])
        if module == "torch" and name.endswith("Storage"):
            raise SetupError(f"has tensors of torch.{shown(name)}: real numbers of up to 64 bits are what runs here")
        raise SetupError(f"names {shown(module)}.{shown(name)}: weights hold tensors only, this is not safe to load")

    stack: list = []
    marked: list[list] = []  # the stacks that a MARK has put aside
    memo: dict[int, object] = {}

    def set_items(items: list) -> None:
        if not isinstance(stack[-1], dict) or not all(isinstance(key, str) for key in items[::2]):
            raise SetupError("holds something else than named tensors")
        stack[-1].update(zip(items[::2], items[1::2], strict=True))

    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marked.append(stack)
                stack = []
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items, stack = tuple(stack), marked.pop()
                stack.append(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                set_items(items)
            case "SETITEMS":
                items, stack = stack, marked.pop()
                set_items(items)
            case "GLOBAL":
                stack.append(find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(find(stack.pop(-2), stack.pop()))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), buffer, storages))
            case "REDUCE":
                function, arguments = stack.pop(-2), stack.pop()
                if not any(function is known for known in (OrderedDict, _rebuild_tensor, _rebuild_parameter)):
                    raise SetupError("calls something: weights hold tensors only, this is not safe to load")
                if function is OrderedDict and arguments:
                    raise SetupError("holds something else than named tensors")
                stack.append(function(*arguments))
            case "BUILD":  # the OrderedDict's _metadata: the versions of the modules
                stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise SetupError(f"holds something else than named tensors ({name} in its pickle)")
    raise EOFError


def _storage(reference, buffer, storages: dict[str, tuple[int, int]]):
    """The tensor [count] of a storage's reference: ("storage", dtype, key, the device it was on, count)."""
    import torch

    kind, dtype, key, _, count = reference if isinstance(reference, tuple) and len(reference) == 5 else [None] * 5
    if kind != "storage" or not isinstance(dtype, torch.dtype) or key not in storages or not _is_size(count):
        raise SetupError(f"refers to a storage that is none ({shown(key)}): not safe to load")
    offset, size = storages[key]
    if count * dtype.itemsize > size:
        raise SetupError(f"claims {count:,} numbers in data/{shown(key)}, which has {size:,} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)


def _rebuild_tensor(storage, offset, size, stride, *_):
    """torch._utils._rebuild_tensor_v2, of no more elements than the storage has, all of them inside."""
    import torch

    sound = len(size) == len(stride) <= MOST_DIMENSIONS and all(map(_is_size, (offset, *size, *stride)))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False)) if sound and all(size) else -1
    if not sound or math.prod(size) > storage.numel() or last >= storage.numel():
        raise SetupError(f"claims a tensor of {shown(list(size))} in a storage of {storage.numel():,} numbers")
    return torch.as_strided(storage, size, stride, offset)


def _rebuild_parameter(data, *_):
    return data


def _is_size(number) -> bool:
    return type(number) is int and 0 <= number < 2**48
