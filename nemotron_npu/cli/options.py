"""Options of one run: small frozen dataclasses, each for one part of the program."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..engine import ModelOptions, StreamOptions
from ..evaluation.wer import NORMALIZERS
from ..subtitles import DEFAULT, Layout

MIX, EACH = "mix", "each"
ENGINES = ("nemo", "native")  # in the order in which --benchmark measures them


@dataclass(frozen=True)
class InputOptions:
    """Audio to transcribe."""

    audio: tuple[str, ...] = ()
    """Files, folders, patterns, manifests and lists; ``("-",)`` is stdin; empty takes what the package bundles."""
    stream: bool = False
    """Feed files chunk by chunk, as a live stream."""
    sample_rate: int | None = None
    """Of raw PCM on stdin, in Hz."""
    raw: bool = False
    """Stdin is raw PCM, whatever it looks like."""
    channel: int | str = MIX
    """Channel to take, from 1 on; ``MIX`` averages all, ``EACH`` makes a recording of each."""
    track: int = 1
    """Audio track to take of files that have several, from 1 on."""

    @property
    def live(self) -> bool:
        """Return whether the audio is a live stream from stdin."""
        return self.audio == ("-",)


@dataclass(frozen=True)
class OutputOptions:
    """Destination and formats of the results."""

    folder: str | None = None
    """Folder for the results; None prints them to stdout."""
    formats: tuple[str, ...] = ("txt",)
    resume: bool = False
    """Skip recordings that an earlier run has finished in the folder."""
    layout: Layout = DEFAULT
    """Of subtitles."""

    @property
    def readable(self) -> bool:
        """Return whether stdout is text for people, and not a series of documents."""
        return self.folder is not None or self.formats == ("txt",)


@dataclass(frozen=True)
class DeviceOptions:
    """Where and with how many resources the model runs."""

    device: str | None = None
    """``npu:N``, ``cuda:N`` or ``cpu``; None takes ``npu:0`` if it is usable, else the CPU."""
    threads: int | None = None
    batch_size: int | None = None
    """Recordings in a batch; None takes the number that suits model and device."""


@dataclass(frozen=True)
class SearchOptions:
    """How tokens are chosen and rated."""

    confidence: str | None = None
    """One of ``confidence.METHODS``; None takes the engine's default."""
    boost_words: str | None = None
    """File of phrases."""
    boost_alpha: float = 1.0
    """Weight of the phrases relative to the model."""


@dataclass(frozen=True)
class ClusterOptions:
    """Processes that share the work."""

    num_workers: int | None = None
    ray_address: str | None = None

    @property
    def given(self) -> bool:
        """Return whether the results must not depend on the number of workers, 1 included."""
        return bool(self.num_workers or self.ray_address)

    @property
    def many(self) -> bool:
        """Return whether other processes transcribe."""
        return bool(self.ray_address) or (self.num_workers or 1) > 1


@dataclass(frozen=True)
class MeasureOptions:
    """Comparisons and figures."""

    precision_compare: bool = False
    tolerances: str | None = None
    """``NAME=PERCENT,...`` for --precision_compare, from --bounds."""
    benchmark: bool = False
    engines: tuple[str, ...] = ENGINES
    """Engines that --benchmark measures."""
    dtype: str | None = None
    """The only dtype of the native engine that --benchmark measures; None measures all that the device supports."""
    all_chunks: bool = False
    """Transcribe at each chunk length that the model offers."""
    wer_report: bool = False
    wer_normalizer: str = NORMALIZERS[0]
    report: str | None = None
    """Folder for figures and plots."""

    @property
    def given(self) -> bool:
        """Return whether the model or the device is measured."""
        return self.precision_compare or self.benchmark or self.all_chunks


@dataclass(frozen=True)
class MessageOptions:
    """What is written to stderr."""

    quiet: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Options:
    """All options of one run."""

    input: InputOptions = field(default_factory=InputOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    model_path: str | None = None
    """A checkpoint or a Hugging Face id; None takes the bundled model."""
    device: DeviceOptions = field(default_factory=DeviceOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    messages: MessageOptions = field(default_factory=MessageOptions)
    doctor: bool = False
    """Check the environment and transcribe nothing."""
    acceptance: str | None = None
    """Folder for the results of all checks and measurements, which run one after the other."""
    save: str | None = None
    """File to write the checkpoint to, in the dtype of ``model``; nothing is transcribed."""

    @property
    def checks_model(self) -> bool:
        """Return whether a model of the user's is checked on the sine of the reference guide."""
        return self.model_path is not None and not self.input.audio
