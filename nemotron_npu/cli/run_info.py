"""Facts of one run that every JSON document repeats."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from ..evaluation.wer import NORMALIZERS


@dataclass(frozen=True)
class RunSettings:
    """Settings that all results of an output folder share; they are known before the model is loaded."""

    model: str
    """Path of the checkpoint."""
    chunk_ms: int | None
    """Chunk length in use; None for a checkpoint that does not attend in chunks."""
    dtype: str
    confidence: str | None
    boost_words: str | None
    """Digest of the boosted phrases and their weight."""
    allow_hf32: bool = False
    """Whether an NPU may compute float32 in HF32, and a GPU in TF32."""
    npu_fused: bool = False
    """Whether an NPU computes by its fused operators."""
    language: str | None = None
    """Prompt in use; None for a checkpoint without prompts."""
    engine: str | None = None
    """The one that was asked for; None in records without."""
    model_id: str | None = None
    """Digits that name the model wherever its file lies, see ``checkpoint.identity``; None in records without."""
    subtitles: str | None = None
    """Options of subtitles, see ``subtitles.Layout``; None for the default."""
    wer_normalizer: str = NORMALIZERS[0]
    """Of normalized error rates, see ``evaluation.wer``."""

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> RunSettings:
        """Return the settings that a result was made with.

        Raises KeyError, TypeError or ValueError for a document without a valid path of a model.
        """
        model = os.path.realpath(document["model"])
        names = ("chunk_ms", "dtype", "confidence", "boost_words", "language", "model_id", "subtitles")
        values: dict[str, Any] = {name: document.get(name) for name in names}
        values["wer_normalizer"] = document.get("wer_normalizer", NORMALIZERS[0])
        engine = document.get("requested_engine", document.get("engine"))
        values |= {name: bool(document.get(name)) for name in ("allow_hf32", "npu_fused")}
        return cls(model=model, engine=engine, **values)

    def differences(self, other: RunSettings) -> list[tuple[str, Any, Any]]:
        """Return (name, own value, other value) of each setting that differs.

        A model is compared by its id; where a record has none, by its path, and a link equals its target.  The
        normalizer makes no difference: texts can be scored again.
        """
        own, others = self._comparable(), other._comparable()
        del own["model" if self.model_id and other.model_id else "model_id"]
        del own["wer_normalizer"]
        if not (self.engine and other.engine):
            del own["engine"]
        return [(name, own[name], others[name]) for name in own if own[name] != others[name]]

    def _comparable(self) -> dict[str, Any]:
        return asdict(self) | {"model": os.path.realpath(self.model)}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON document has them."""
        return asdict(self)


@dataclass(frozen=True)
class RunInfo:
    """Model, device and settings of a run, once the model is loaded."""

    settings: RunSettings
    parameters: int
    """Number of weights."""
    engine: str
    """``"native"`` or ``"nemo"``."""
    device: str
    device_name: str
    """Name of the hardware."""
    device_settings: dict[str, bool]
    """Switches of float32 arithmetic, see ``device.device_settings``."""
    load_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields in the order of a JSON document."""
        settings = self.settings.as_dict()
        requested = settings.pop("engine")
        if requested not in (None, self.engine):  # NeMo stands in for an engine that lacks something
            settings["requested_engine"] = requested
        return {
            "model": settings.pop("model"),
            "model_id": settings.pop("model_id"),
            "parameters": self.parameters,
            "engine": self.engine,
            "device": self.device,
            "device_name": self.device_name,
            "device_settings": self.device_settings,
            "dtype": settings.pop("dtype"),
            **settings,
            "timings": {"load": round(self.load_seconds, 3)},
        }

    def result_fields(self, duration: float, seconds: float) -> dict[str, Any]:
        """Return ``as_dict`` with the timings of a recording of ``duration`` s that took ``seconds``."""
        fields = self.as_dict()
        fields["timings"] |= {"seconds": round(seconds, 4), "rtfx": round(duration / max(seconds, 1e-6), 2)}
        return fields
