"""The pickle that lists a checkpoint's tensors, read by an allow-list of instructions and names."""

from __future__ import annotations

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..errors import shown
from .refusal import NOT_FLOATS, UNSAFE, Refusal
from .torch_zip import Buffer, Storages

MAX_DIMENSIONS = 8
MAX_SIZE = 2**48  # of a dimension, stride or offset, in elements
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NPU_FORMATS = (0, 2, 30, 47)
"""Of torch_npu, those without a layout of their own: ND, which is NCHW, NCDHW or NCL for some numbers of dimensions."""
ONLY_TENSORS = "weights hold tensors only, not safe to load"


class TensorUnpickler:
    """Read a dictionary of tensors as ``torch.load(weights_only=True)`` does, on tensors that stay where they lie.

    A pickle is a program: it may name any function, call it, and ask for memory without end.  Therefore no
    ``pickle.Unpickler`` runs it.  ``INSTRUCTIONS`` has the opcodes that ``torch.save`` writes; each adds at most one
    object.  ``find_class`` has the names that mean something to them.  All other opcodes and names are refused.  Keys
    are checked before they are hashed, since hashing nested tuples can take exponential time.

    ``pickled`` is the record ``data.pkl``, ``buffer`` the bytes in which the ``storages`` lie.
    """

    def __init__(self, pickled: bytes, buffer: Buffer, storages: Storages) -> None:
        self.pickled = pickled
        self.buffer = buffer
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> object:
        """Return what the pickle holds.

        Raises Refusal for opcodes and names that are not allowed and for tensors outside their storage; bytes that make
        no sense raise what ``pickletools`` and the stack raise (see ``torch_zip.BROKEN``).
        """
        for opcode, argument, _ in pickletools.genops(self.pickled):
            if opcode.name == "STOP":
                return self.stack.pop()
            instruction = self.INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise Refusal(f"holds something other than named tensors ({opcode.name} in its pickle)")
            instruction(self, argument)
        raise EOFError

    def find_class(self, module: str, name: str) -> object:
        """Return the object of an allowed name; raise Refusal for any other."""
        known = ALLOWED.get((module, name))
        if known is not None:
            return known
        if module == "torch" and isinstance(name, str) and name.endswith("Storage"):
            raise Refusal(f"has tensors of torch.{shown(name)}", NOT_FLOATS)
        if module == "torch._utils" and isinstance(name, str) and name.startswith("_rebuild_"):
            raise Refusal(f"has quantized, 8-bit, sparse or empty tensors (torch._utils.{shown(name)})", NOT_FLOATS)
        raise Refusal(f"names {shown(module)}.{shown(name)}", ONLY_TENSORS)

    def persistent_load(self, reference: object) -> torch.Tensor:
        """Return the tensor [count] of a storage: ("storage", dtype, key, the device it was on, count)."""
        if not isinstance(reference, tuple) or len(reference) != 5:
            raise Refusal("refers to an unknown storage", UNSAFE)
        kind, dtype, key, _, count = reference
        known = isinstance(key, str) and key in self.storages
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not known or not _is_size(count):
            raise Refusal("refers to an unknown storage", UNSAFE)
        offset, size = self.storages[key]
        if count * dtype.itemsize > size:
            raise Refusal(f"claims {count:,} numbers in data/{shown(key)}, which has {size:,} bytes")
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=offset)

    # One method for each group of opcodes.

    def _push(self, argument: object) -> None:
        self.stack.append(argument)

    def _skip(self, _: object) -> None:
        pass

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _items_since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _tuple(self, _: object) -> None:
        items = tuple(self._items_since_mark())
        self.stack.append(items)

    def _join(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _set_item(self, _: object) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def _set_items(self, _: object) -> None:
        items = self._items_since_mark()
        self._update(self.stack[-1], items)

    def _update(self, target: object, items: list[Any]) -> None:
        keys = items[::2]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in keys):
            raise Refusal("holds something other than named tensors")
        target.update(zip(keys, items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.stack.append(self.find_class(module, name))

    def _stack_global(self, _: object) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is not text")
        self.stack.append(self.find_class(module, name))

    def _persistent_id(self, _: object) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))

    def _reduce(self, _: object) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not any(function is known for known in CALLABLE):
            raise Refusal("calls an object", ONLY_TENSORS)
        self.stack.append(function(*arguments))

    def _build(self, _: object) -> None:
        """Drop a state: torch saves the versions of the modules as that of its OrderedDict."""
        self.stack.pop()

    INSTRUCTIONS: ClassVar[dict[str, Callable[[TensorUnpickler, Any], None]]] = {
        **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"), _push),
        **dict.fromkeys(("PROTO", "FRAME"), _skip),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
        "MEMOIZE": _memoize,
        "NONE": lambda self, _: self.stack.append(None),
        "NEWTRUE": lambda self, _: self.stack.append(True),
        "NEWFALSE": lambda self, _: self.stack.append(False),
        "EMPTY_TUPLE": lambda self, _: self.stack.append(()),
        "EMPTY_DICT": lambda self, _: self.stack.append({}),
        "MARK": _mark,
        "TUPLE1": lambda self, _: self._join(1),
        "TUPLE2": lambda self, _: self._join(2),
        "TUPLE3": lambda self, _: self._join(3),
        "TUPLE": _tuple,
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "BINPERSID": _persistent_id,
        "REDUCE": _reduce,
        "BUILD": _build,
    }


def _ordered_dict(*arguments: object) -> OrderedDict:
    if arguments:
        raise Refusal("holds something other than named tensors")
    return OrderedDict()


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
    """Do what ``torch._utils._rebuild_tensor_v2`` does, for tensors inside their storage only."""
    fits = len(size) == len(stride) <= MAX_DIMENSIONS and all(map(_is_size, (offset, *size, *stride)))
    if fits and all(size):
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        fits = last < storage.numel() and math.prod(size) <= storage.numel()
    if not fits:
        raise Refusal(f"claims a tensor of {_sizes(size)} in a storage of {storage.numel():,} numbers")
    return torch.as_strided(storage, size, stride, offset)


def _rebuild_parameter(data: torch.Tensor, *_: object) -> torch.Tensor:
    return data


def _npu_format(*arguments: object) -> object:
    """Return the number of a format."""
    if len(arguments) != 1:
        raise Refusal("holds something other than named tensors")
    return arguments[0]


def _rebuild_npu_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *rest: object) -> torch.Tensor:
    """Do the same for a tensor that torch_npu has saved: ``rest`` ends with its format on the NPU.

    torch_npu copies a tensor to the host before it saves it, so its bytes are those of a CPU tensor.
    """
    layout = rest[-1] if len(rest) == 3 else None
    if type(layout) is not bool and (type(layout) is not int or layout not in NPU_FORMATS):
        raise Refusal("has tensors in a private format of an NPU", "move the model to the CPU before it is saved")
    return _rebuild_tensor(storage, offset, size, stride)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < MAX_SIZE


def _sizes(size: tuple) -> str:
    """Return a shape for a message; other things than numbers could be nested, so they are not shown."""
    if all(type(n) is int for n in size):
        return shown(list(size))
    return "an impossible shape"


ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _rebuild_npu_tensor,
    ("torch_npu.npu._format", "Format"): _npu_format,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}
"""(module, name) as the pickle spells it -> what it stands for."""
CALLABLE = (_ordered_dict, _rebuild_tensor, _rebuild_parameter, _rebuild_npu_tensor, _npu_format)
