"""The cost of a steady encoder step without a clock: operators, products and bytes of new memory, in every form.

A change that makes a step cheaper lowers the bounds here; one that makes it more expensive has to give the reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from support import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemotron_npu import dtypes, linear
from nemotron_npu.benchmark.steps import steady_step
from nemotron_npu.benchmark.timing import count_operators
from nemotron_npu.engine import ModelOptions
from nemotron_npu.recognizer import Recognizer

PRODUCTS = ("mm", "linear", "conv")
CHUNKS = (80, 560, 1120)


class Form(NamedTuple):
    """How this model's products are computed, and the most that a step of 80, 560 and 1120 ms may cost."""

    dtype: str
    packed: bool
    """By oneDNN; for int8: not by FBGEMM."""
    operators: tuple[int, int, int]
    kilobytes: tuple[int, int, int]
    """Of tensors that operators return, temporary or not; 1000 bytes."""


FORMS = [
    Form("float32", False, (138, 144, 145), (165, 1170, 2370)),
    Form("float32", True, (138, 144, 145), (205, 1500, 3050)),
    Form("bfloat16", True, (235, 241, 242), (305, 2200, 4400)),
    Form("int8", False, (357, 363, 364), (280, 2010, 4050)),
    Form("int8", True, (521, 527, 528), (235, 1670, 3360)),
]


class Effort(TorchDispatchMode):
    """Counts products, and the bytes of the tensors that operators return in memory of their own."""

    products = 0
    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> object:
        result = function(*args, **(kwargs or {}))
        self.products += any(name in function.name() for name in PRODUCTS)
        given = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.bytes += sum(tensor.nbytes for tensor in made if _memory(tensor) not in given)
        return result


def _memory(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.dtype}-{'packed' if form.packed else 'plain'}")
def test_a_step_costs_no_more_than_it_did(form, monkeypatch):
    """A steady step of the bundled model calls no more operators and fills no more new memory than is written here."""
    if form.dtype not in dtypes.offered_dtypes(torch.device("cpu")):
        assert form.dtype in dtypes.left_out(torch.device("cpu"))
        return
    if form.dtype == "int8":
        if not form.packed and not dtypes.has_fbgemm():
            pytest.skip("FBGEMM needs AVX2")
        monkeypatch.setattr(linear, "has_tiles", lambda: form.packed)
    elif form.packed and not dtypes.packs_weights():
        pytest.skip("this torch has no oneDNN for x86")
    else:
        monkeypatch.setattr(linear, "packs_weights", lambda: form.packed)
    model = Recognizer(ROOT / "demo" / "demo.nemo", "cpu", options=ModelOptions(dtype=form.dtype))
    costs = []
    for chunk_ms in CHUNKS:
        step = steady_step(model.at_chunk(chunk_ms))
        with Effort() as effort:
            step()
        costs.append((count_operators(step), round(effort.bytes / 1000), effort.products))
    operators, kilobytes, products = zip(*costs, strict=True)
    assert all(cost <= most for cost, most in zip(operators, form.operators, strict=True)), operators
    assert all(cost <= most for cost, most in zip(kilobytes, form.kilobytes, strict=True)), kilobytes
    assert set(products) == {5 * (8 + 3 + 1) + 1}, "of a layer: linear, attention, convolution; of the subsampling"
