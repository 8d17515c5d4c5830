"""``--precision_compare``: the device's instance of the model against the CPU's, on the same samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from . import writers
from .recognizer import Recognizer

THRESHOLD = 1.0  # percent of relative error below which the write-up calls a device right


@dataclass(frozen=True)
class Difference:
    """How far ``a`` is from ``b``, element by element; both float32 of the same shape."""

    mse: float
    mae: float
    max_error: float
    relative_error_percent: float
    """Relative L1 error: 100 * sum|a - b| / sum|b|."""


@dataclass(frozen=True)
class Comparison:
    """One recording on the device and on the CPU."""

    features_shape: list[int]
    encoded_shape: list[int]
    preprocessor: Difference
    encoder: Difference
    device_range: tuple[float, float]
    """Smallest and largest value of the encoder output on the device."""
    cpu_range: tuple[float, float]
    cpu_against_cpu: Difference
    """The CPU's encoder output of two runs: must be exactly 0, or the method itself is not to be trusted."""
    failures: list[str]
    """Why the verdict is FAILED; empty when it is PASSED."""

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict:
        return {**asdict(self), "verdict": "PASSED" if self.passed else "FAILED"}


def difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Raises ValueError when the shapes differ.  Computed in float64, so that the measure adds no error of its own."""
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()
    error = (a - b).abs()
    total, scale = float(error.sum()), float(b.abs().sum())
    relative = 100 * total / scale if scale else (0.0 if total == 0 else float("inf"))
    return Difference(float((error**2).mean()), float(error.mean()), float(error.max()), relative)


def compare(candidate: Recognizer, reference: Recognizer, waveform: np.ndarray) -> Comparison:
    """Run preprocessor and encoder of both on ``waveform``, the reference twice.

    The candidate's encoder is fed its own features, as it is in use.
    """
    features, encoded = _run(candidate, waveform)
    features_cpu, encoded_cpu = _run(reference, waveform)
    _, again = _run(reference, waveform)
    encoder, repeat = difference(encoded, encoded_cpu), difference(again, encoded_cpu)
    failures = []
    if not (torch.isfinite(encoded).all() and torch.isfinite(encoded_cpu).all()):
        failures.append("encoder output is not finite")
    elif not encoder.relative_error_percent < THRESHOLD:
        failures.append(f"relative error {encoder.relative_error_percent:.4f} % is not under {THRESHOLD:g} %")
    if not torch.equal(again, encoded_cpu):
        failures.append(f"two runs on the CPU differ by up to {repeat.max_error:.3g}")
    return Comparison(
        features_shape=list(features.shape),
        encoded_shape=list(encoded.shape),
        preprocessor=difference(features, features_cpu),
        encoder=encoder,
        device_range=(float(encoded.min()), float(encoded.max())),
        cpu_range=(float(encoded_cpu.min()), float(encoded_cpu.max())),
        cpu_against_cpu=repeat,
        failures=failures,
    )


def _run(recognizer: Recognizer, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1, mels, T] and valid encoder output [1, width, frames] of one recording, on the host."""
    features, lengths = recognizer.preprocess([waveform])
    encoded, frames = recognizer.encode(features, lengths)
    return features.cpu(), encoded[:, :, : int(frames[0])].cpu()


def to_table(comparison: Comparison, name: str, device: str) -> str:
    """The write-up's table, row by row, for a terminal."""
    c = comparison
    rows = [
        ("Preprocessor MAE", f"{c.preprocessor.mae:.10f}"),
        ("Preprocessor Max Error", f"{c.preprocessor.max_error:.10f}"),
        ("Encoder MSE", f"{c.encoder.mse:.3g}"),
        ("Encoder MAE", f"{c.encoder.mae:.10f}"),
        ("Max Absolute Error", f"{c.encoder.max_error:.10f}"),
        ("Relative Error", f"{c.encoder.relative_error_percent:.6f} %"),
        (f"Output range, {device}", f"{c.device_range[0]:.6f} .. {c.device_range[1]:.6f}"),
        ("Output range, cpu", f"{c.cpu_range[0]:.6f} .. {c.cpu_range[1]:.6f}"),
        ("cpu against cpu", f"MAE = {c.cpu_against_cpu.mae}, max = {c.cpu_against_cpu.max_error}"),
        ("Verdict", f"PASSED (< {THRESHOLD:g} %)" if c.passed else "FAILED: " + "; ".join(c.failures)),
    ]
    return writers.to_table(f"Precision of {device} against cpu: {name}", rows)
