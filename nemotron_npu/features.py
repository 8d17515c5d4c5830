"""Samples -> log-mel features, equal to those of NeMo's AudioToMelSpectrogramPreprocessor; the signal may grow."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .checkpoint.config import PreprocessorConfig
from .checkpoint.weights import Weights
from .errors import SetupError, Unsupported, shown


class Frontend:
    """The settings and filters of one checkpoint's log-mel features.  Runs on the host.

    ``weights`` are the checkpoint's tensors whose names begin with ``preprocessor.featurizer.``: ``fb`` and ``window``.
    Raises Unsupported for settings that need the whole recording at once.
    """

    def __init__(self, config: PreprocessorConfig, weights: Weights) -> None:
        if config.unknown:
            raise Unsupported(config.unknown[0])
        if _is_normalized(config.normalize):
            raise Unsupported(f"features normalized over the whole recording (normalize: {shown(config.normalize)})")
        if config.frame_splicing != 1:
            raise Unsupported("spliced feature frames")
        self.hop, window_length = config.hop_length, config.window_length
        self.n_fft = config.n_fft or 1 << (window_length - 1).bit_length()
        if max(self.hop, window_length) > self.n_fft:
            raise SetupError(
                "model_config.yaml",
                f"windows of {window_length} samples, {self.hop} apart, do not fit n_fft {self.n_fft}",
            )
        self.pad = (self.n_fft - self.hop) // 2 if config.exact_pad else self.n_fft // 2
        # NeMo pads an exact_pad signal before pre-emphasis and then silences the samples past the *unpadded* length
        self.dropped = self.pad if config.exact_pad and config.preemph is not None else 0
        self.preemph = config.preemph
        self.mag_power = config.mag_power
        self.log = config.log
        self.clamp = config.log_zero_guard_type == "clamp"
        self.guard = config.log_zero_guard_value
        if isinstance(self.guard, str):
            self.guard = getattr(torch.finfo(torch.float32), self.guard)
        window = weights("window", window_length)
        lead = (self.n_fft - len(window)) // 2  # torch.stft centres a shorter window
        self.window = F.pad(window, (lead, self.n_fft - len(window) - lead))
        self.reach = int(self.window.nonzero().max()) + 1 if self.window.any() else self.n_fft
        filters = weights("fb", 1, config.features, self.n_fft // 2 + 1)
        self.filters = filters[0].t().contiguous()  # [n_fft // 2 + 1, mels]
        self.mels = self.filters.shape[1]

    def frames(self, samples: int) -> int:
        """Return the valid feature frames of a recording of so many samples (FilterbankFeatures.get_seq_len)."""
        return max(0, (samples + 2 * self.pad - self.n_fft) // self.hop)

    def log_mel(self, signal: torch.Tensor) -> torch.Tensor:
        """Compute float32 [frames, mels] of every whole window in a pre-emphasized and padded float32 [samples]."""
        spectrum = torch.fft.rfft(signal.unfold(0, self.n_fft, self.hop) * self.window)
        squares = torch.view_as_real(spectrum).square()
        power = squares[..., 0] + squares[..., 1]  # sum(-1) takes five times as long over two values
        if self.mag_power != 2.0:
            power = power.sqrt().pow(self.mag_power)
        mel = power @ self.filters
        if not self.log:
            return mel
        return torch.log(mel.clamp(min=self.guard) if self.clamp else mel + self.guard)


def _is_normalized(kind: object) -> bool:
    """Return whether this ``normalize`` changes anything: NeMo's normalize_batch passes over words that it lacks."""
    if isinstance(kind, str):
        return kind in ("per_feature", "all_features") or ("fixed_mean" in kind and "fixed_std" in kind)
    return bool(kind)


class FeatureStream:
    """The features of one recording, whose samples arrive in parts.

    However the samples are cut, the frames are those of the whole recording: a frame is given as soon as the window's
    last sample that is not multiplied by zero is there, pre-emphasis is carried across, and silence is only added at
    the true start and end.
    """

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.samples = 0
        """Samples fed so far."""
        self.frames = 0
        """Frames given so far."""
        self.held = torch.empty(0)  # raw samples that are silenced if the recording ends here
        self.last = torch.zeros(1)  # the raw sample before the next one
        self.signal = torch.zeros(frontend.pad)  # pre-emphasized, from the first sample of the next frame on

    def feed(self, samples: torch.Tensor) -> torch.Tensor:
        """Add float32 [samples], any number.  Returns the frames that they complete, float32 [frames, mels]."""
        self._append(samples)
        frontend = self.frontend
        count = (len(self.signal) - frontend.reach) // frontend.hop + 1
        return self._frames(min(count, frontend.frames(self.samples) - self.frames))

    def finish(self, samples: torch.Tensor | None = None) -> torch.Tensor:
        """Return the remaining frames, float32 [frames, mels]; ``samples`` are the last ones, if there are more."""
        if samples is not None:
            self._append(samples)
        return self._frames(self.frontend.frames(self.samples) - self.frames)

    def _append(self, samples: torch.Tensor) -> None:
        frontend = self.frontend
        self.samples += len(samples)
        if frontend.dropped:
            samples = torch.cat([self.held, samples])
            self.held = samples[max(0, len(samples) - frontend.dropped) :]
            samples = samples[: len(samples) - len(self.held)]
        if not len(samples):
            return
        emphasized = samples
        if frontend.preemph is not None:
            emphasized = samples - frontend.preemph * torch.cat([self.last, samples[:-1]])
            self.last = samples[-1:]
        self.signal = torch.cat([self.signal, emphasized])

    def _frames(self, count: int) -> torch.Tensor:
        frontend = self.frontend
        if count <= 0:
            return torch.empty(0, frontend.mels)
        needed = (count - 1) * frontend.hop + frontend.n_fft
        signal = self.signal[:needed]
        if len(signal) < needed:
            signal = F.pad(signal, (0, needed - len(signal)))
        features = frontend.log_mel(signal)
        self.signal = self.signal[count * frontend.hop :]
        self.frames += count
        return features
