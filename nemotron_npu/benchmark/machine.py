"""The rates of the machine and the work of an encoder step, which give a lower limit of its time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch

from ..device import traits_of
from ..encoder import Encoder
from ..linear import make_linear
from .results import Rates, Work
from .timing import measure_ms

REPEATS = 5
READ_ELEMENTS = 1 << 28
"""1 GiB of float32: no cache holds it."""
ROWS = 512
"""Rows of the product: so many that computing takes longer than reading the weight."""


def machine_rates(device: torch.device, dtypes: Iterable[str]) -> Rates:
    """Measure how fast memory is read, and how fast the engine's own products with many rows are; medians of 5."""
    memory = torch.ones(READ_ELEMENTS, device=device)  # not zeros: untouched memory is one page
    read = statistics.median(measure_ms(memory.sum, device) for _ in range(REPEATS))
    read_gb_s = round(memory.nbytes / 1e6 / read, 1)
    del memory
    return Rates(read_gb_s, {dtype: _product_rate(device, dtype) for dtype in sorted(dtypes)})


def _product_rate(device: torch.device, dtype: str) -> float:
    """Return GFLOP/s of a linear layer in ``dtype``."""
    storage = traits_of(device).storage_dtype(dtype)
    weight = torch.randn(4096, 1024, device=device, dtype=storage)
    linear = make_linear(weight, None, dtype)
    x = torch.randn(ROWS, 1024, device=device, dtype=storage)
    linear(x)
    product = statistics.median(measure_ms(lambda: linear(x), device) for _ in range(REPEATS))
    return round(2 * len(x) * weight.numel() / 1e6 / product, 1)


def step_work(encoder: Encoder, frames: int) -> Work:
    """Return the work of a step of ``frames`` encoder frames whose left context is full."""
    linears = list(encoder.linears())
    keys = encoder.keep + frames
    positions = keys + frames - 1
    kernel = encoder.conv_left + encoder.conv_right + 1
    products = sum(linear.elements for linear in linears) * frames
    products += len(encoder.layers) * frames * encoder.width * (2 * keys + positions + kernel)
    products += _subsampling_products(encoder, frames)
    rows = 2 * encoder.keep + positions  # cached keys and values, projected positions
    cached = len(encoder.layers) * encoder.width * rows * encoder.tensor_options["dtype"].itemsize
    return Work(sum(linear.bytes for linear in linears) + cached, 2 * products)


def _subsampling_products(encoder: Encoder, frames: int) -> int:
    """Return the multiplications of the convolutions that make ``frames`` encoder frames."""
    rows = frames * encoder.factor
    features = encoder.mels
    products = 0
    for stage in encoder.subsampling.stages:
        rows //= 2
        features //= 2
        products += rows * features * stage.elements
    return products
