"""Options of one run: the command line, parsed once into small frozen dataclasses, each for one part of the program."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field

from ..engine import ModelOptions
from .argument_types import parse_formats
from .conflicts import doctor_conflicts, option_conflicts
from .parser import make_parser

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
        """Return whether the results shall not depend on the number of workers, 1 included."""
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
    """A ``.nemo`` file or a Hugging Face id; None takes the bundled model."""
    device: DeviceOptions = field(default_factory=DeviceOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    messages: MessageOptions = field(default_factory=MessageOptions)
    doctor: bool = False
    """Check the environment and transcribe nothing."""

    @property
    def checks_model(self) -> bool:
        """Return whether a model of the user's is checked on the sine of the reference guide."""
        return self.model_path is not None and not self.input.audio


def parse_options(arguments: list[str] | None = None) -> Options:
    """Parse ``arguments``, else those of the process.

    Wrong usage ends the program with a usage line, an error line and exit code 2.
    """
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # only where a shell asks for completions

        argcomplete.autocomplete(parser)
    given = parser.parse_args(arguments)
    if given.doctor:
        for problem in doctor_conflicts(given, parser.get_default):
            parser.error(problem)
    options = _options(given)
    for problem in option_conflicts(options):
        parser.error(problem)
    return options


def _options(given: argparse.Namespace) -> Options:
    """Sort the values of the command line into their dataclasses."""
    default_formats = "all" if given.output_dir else "txt"
    all_chunks = given.chunk_ms == "all"
    return Options(
        input=InputOptions(tuple(given.audio), given.stream, given.sample_rate),
        output=OutputOptions(
            folder=given.output_dir or None,
            formats=given.output_format or parse_formats(default_formats),
            resume=given.resume,
        ),
        model_path=given.model_path or None,
        device=DeviceOptions(given.device, given.threads, given.batch_size),
        model=ModelOptions(
            engine=given.engine or "native",
            chunk_ms=None if all_chunks else given.chunk_ms,
            dtype=given.dtype or "float32",
            decoder_device=given.decoder_device,
            graph=given.graph == "on",
            block_ms=given.block_ms,
        ),
        search=SearchOptions(given.confidence, given.boost_words, given.boost_alpha),
        cluster=ClusterOptions(given.num_workers, given.ray_address),
        measure=MeasureOptions(
            precision_compare=given.precision_compare,
            tolerances=given.bounds,
            benchmark=given.benchmark,
            engines=(given.engine,) if given.engine else ENGINES,
            dtype=given.dtype,
            all_chunks=all_chunks,
            wer_report=given.wer_report,
            report=given.report,
        ),
        messages=MessageOptions(given.quiet, given.debug),
        doctor=given.doctor,
    )
