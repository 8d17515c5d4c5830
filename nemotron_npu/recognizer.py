"""What users hold: a recognizer of one checkpoint on one device, whichever engine is behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .checkpoint import choose_context, read_config
from .transcript import Transcript


class Recognizer(Protocol):
    """The calls that every engine answers.  Waveforms are float32 [samples], mono, 16 kHz, each of its own length."""

    device: torch.device
    engine: str
    """``"nemo"``."""
    chunk_ms: int | None
    """Chunk length in use; None for a checkpoint that does not attend in chunks."""
    frame_seconds: float
    """Seconds of sound in one encoder frame."""
    parameters: int
    """Number of weights."""

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel features float32 [B, mels, T] and their valid lengths int64 [B], on the device."""

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output float32 [B, width, frames] and its valid lengths int64 [B], on the device."""

    def transcribe(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """Recognise the waveforms as one batch; results in input order."""


def load_recognizer(path: Path, device: torch.device, chunk_ms: int | None = None) -> Recognizer:
    """Load the checkpoint ``path`` onto ``device``; ``chunk_ms`` None takes the checkpoint's default chunk.

    Raises SetupError when the checkpoint cannot be used or does not offer that chunk size.
    """
    config = read_config(path)
    chunk_ms, context = choose_context(config, chunk_ms)
    from .nemo_engine import NemoRecognizer  # NeMo takes seconds to import

    return NemoRecognizer(path, config, device, chunk_ms, context)
