"""The command line, parsed once into ``Options``."""

from __future__ import annotations

import argparse
import os

from ..engine import STREAM_DEFAULTS, ModelOptions, StreamOptions
from ..subtitles import Layout
from .argument_types import parse_formats
from .conflicts import acceptance_conflicts, doctor_conflicts, option_conflicts, save_conflicts
from .options import (
    ENGINES,
    ClusterOptions,
    DeviceOptions,
    InputOptions,
    MeasureOptions,
    MessageOptions,
    Options,
    OutputOptions,
    SearchOptions,
)
from .parser import make_parser


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
    if given.save is not None:
        for problem in save_conflicts(given, parser.get_default):
            parser.error(problem)
    if given.acceptance is not None:
        for problem in acceptance_conflicts(given, parser.get_default):
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
        input=InputOptions(tuple(given.audio), given.stream, given.sample_rate, given.raw, given.channel, given.track),
        output=OutputOptions(
            folder=given.output_dir or None,
            formats=given.output_format or parse_formats(default_formats),
            resume=given.resume,
            layout=Layout(given.max_line_width, given.max_line_count, given.max_words_per_line),
        ),
        model_path=given.model_path or None,
        device=DeviceOptions(given.device, given.threads, given.batch_size),
        model=ModelOptions(
            engine=given.engine or "native",
            chunk_ms=None if all_chunks else given.chunk_ms,
            language=given.language,
            dtype=given.dtype,
            decoder_device=given.decoder_device,
            graph=given.graph == "on",
            block_ms=given.block_ms,
            allow_hf32=given.allow_hf32,
            npu_fused=given.npu_fused,
        ),
        stream=StreamOptions(
            endpoint_ms=STREAM_DEFAULTS.endpoint_ms if given.endpoint_ms is None else given.endpoint_ms,
            reset_after_pause_ms=given.reset_after_pause or 0,
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
            wer_normalizer=given.wer_normalizer,
            report=given.report,
        ),
        messages=MessageOptions(given.quiet, given.debug),
        doctor=given.doctor,
        acceptance=given.acceptance,
        save=given.save,
    )
