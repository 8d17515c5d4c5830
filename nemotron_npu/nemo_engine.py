"""Stock NeMo behind the calls of ``recognizer.py``: ``restore_from``, its preprocessor, encoder and ``transcribe``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel

from .audio import SAMPLE_RATE
from .checkpoint import frame_seconds
from .errors import SetupError, first_line
from .transcript import Token, Transcript


class NemoRecognizer:
    """A NeMo model on one device; see ``recognizer.Recognizer`` for the calls."""

    engine = "nemo"

    def __init__(self, path: Path, config: dict, device: torch.device, chunk_ms: int | None, context: list[int] | None):
        try:
            model = EncDecRNNTBPEModel.restore_from(str(path), map_location="cpu")  # only the CPU can read every file
        except Exception as error:
            raise SetupError(f"{path}: NeMo cannot restore this checkpoint: {first_line(error)}") from error
        self.device = device
        self.chunk_ms = chunk_ms
        self.frame_seconds = frame_seconds(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        if context:
            model.encoder.set_default_att_context_size(context)
        featurizer = model.preprocessor.featurizer
        featurizer.dither = 0.0  # noise that would make two runs differ
        featurizer.pad_to = 0
        self.stride = featurizer.hop_length
        self.model = model.to(device).eval()

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(w) for w in waveforms])
        samples = torch.zeros(len(waveforms), int(lengths.max()))
        for row, waveform in zip(samples, waveforms, strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform)
        with torch.inference_mode():
            return self.model.preprocessor(input_signal=samples.to(self.device), length=lengths.to(self.device))

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return self.model.encoder(audio_signal=features, length=lengths)

    def transcribe(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        # shorter than one mel frame: nothing to recognise, and NeMo fails on a batch without any frame
        audible = [i for i, waveform in enumerate(waveforms) if len(waveform) >= self.stride]
        transcripts = [Transcript("", (), len(waveform) / SAMPLE_RATE) for waveform in waveforms]
        if audible:
            hypotheses = self.model.transcribe(
                [waveforms[i] for i in audible], batch_size=len(audible), return_hypotheses=True, verbose=False
            )
            self.model.eval()  # transcribe() leaves its parts in training mode, with dropout
            for i, hypothesis in zip(audible, hypotheses, strict=True):
                transcripts[i] = self._transcript(hypothesis, waveforms[i])
        return transcripts

    def _transcript(self, hypothesis, waveform: np.ndarray) -> Transcript:
        ids = [int(i) for i in hypothesis.y_sequence]
        frames = [int(frame) for frame in hypothesis.timestamp]
        pieces = self.model.tokenizer.ids_to_tokens(ids)
        tokens = tuple(
            Token(id, piece, frame, round(frame * self.frame_seconds, 3))
            for id, piece, frame in zip(ids, pieces, frames, strict=True)
        )
        return Transcript(hypothesis.text, tokens, len(waveform) / SAMPLE_RATE)
