"""The comparison of the reference guide: preprocessor and encoder of one signal, on the device and on the CPU.

The reference guide is the Ascend adaptation guide of nemotron-speech-streaming-en-0.6b.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..engine import LocalEngine
from ..host.table import format_table
from .metrics import Difference, difference, verdict

THRESHOLD = 1.0  # percent of relative error below which the reference guide accepts a device

PUBLISHED_HEAD = ("Ascend 910B2, guide", "HF32 of 11 bits, emulated", "HF32 of 10 bits, emulated")
PUBLISHED = {
    "Preprocessor MAE": ("7.55e-06", "1.2e-08", "1.2e-08"),
    "Preprocessor Max Error": ("0.000133", "1.91e-06", "1.91e-06"),
    "Encoder MSE": ("1e-10", "1e-07", "3.19e-07"),
    "Encoder MAE": ("8.34e-06", "0.000251", "0.000452"),
    "Max Absolute Error": ("7.35e-05", "0.00136", "0.00214"),
    "Relative Error": ("0.0552 %", "0.0316 %", "0.0567 %"),
}
"""Figures of this signal at full size to compare a run with.

The emulated ones come from the tests' fake NPU (``tests/fake_npu.py``) with random weights, whose encoder output is 15
times larger than that of the published ones: only their relative error compares.
"""


@dataclass(frozen=True)
class SignalComparison:
    """The figures of one signal on the device and on the CPU."""

    features_shape: list[int]
    encoded_shape: list[int]
    preprocessor: Difference
    encoder: Difference
    device_range: tuple[float, float]
    """Smallest and largest value of the encoder output on the device."""
    cpu_range: tuple[float, float]
    cpu_against_cpu: Difference
    """The CPU's encoder outputs of two runs; unless it is exactly 0, the method itself cannot be trusted."""
    threshold: float
    """PASSED needs a relative error below this, in percent."""
    failures: list[str]
    """The reasons for FAILED; empty for PASSED."""

    @property
    def passed(self) -> bool:
        """Whether the device is accepted."""
        return not self.failures

    def as_dict(self) -> dict:
        """Return the figures for JSON."""
        return {**asdict(self), "verdict": verdict(passed=self.passed)}


def compare_signal(
    candidate: LocalEngine,
    reference: LocalEngine,
    waveform: np.ndarray,
    threshold: float = THRESHOLD,
) -> SignalComparison:
    """Run preprocessor and encoder of both on ``waveform``, float32 [samples], the reference twice.

    The candidate's encoder gets the candidate's own features, as in use.
    """
    features, encoded = _run(candidate, waveform)
    features_cpu, encoded_cpu = _run(reference, waveform)
    _, repeated = _run(reference, waveform)
    encoder = difference(encoded, encoded_cpu)
    repeat = difference(repeated, encoded_cpu)
    failures = []
    if not (torch.isfinite(encoded).all() and torch.isfinite(encoded_cpu).all()):
        failures.append("encoder output is not finite")
    elif not encoder.relative_error_percent < threshold:
        failures.append(f"relative error {encoder.relative_error_percent:.4f} % is not under {threshold:g} %")
    if not torch.equal(repeated, encoded_cpu):
        failures.append(f"two runs on the CPU differ by up to {repeat.max_error:.3g}")
    return SignalComparison(
        features_shape=list(features.shape),
        encoded_shape=list(encoded.shape),
        preprocessor=difference(features, features_cpu),
        encoder=encoder,
        device_range=(float(encoded.min()), float(encoded.max())),
        cpu_range=(float(encoded_cpu.min()), float(encoded_cpu.max())),
        cpu_against_cpu=repeat,
        threshold=threshold,
        failures=failures,
    )


def _run(recognizer: LocalEngine, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [1, mels, T] and valid encoder output [1, width, frames] of one recording, on the host."""
    features, lengths = recognizer.preprocess([waveform])
    encoded, frames = recognizer.encode(features, lengths)
    return features.cpu(), encoded[:, :, : int(frames[0])].cpu()


def format_signal(comparison: SignalComparison, name: str, device: str) -> str:
    """Return the reference guide's table, row by row, for a terminal."""
    c = comparison
    result = f"PASSED (< {c.threshold:g} %)" if c.passed else f"FAILED: {'; '.join(c.failures)}"
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
        ("Verdict", result),
    ]
    return format_table(rows, title=f"Precision of {device} against cpu: {name}", left=2)
