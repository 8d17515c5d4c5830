"""Options that do not go together: one error line for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from ..engine import STREAM_DEFAULTS
from ..formats import FORMATS
from .options import MeasureOptions, Options

DOCTOR_OPTIONS = {"doctor", "device", "model_path", "engine", "output_format", "quiet", "debug"}
SAVE_OPTIONS = {"save", "model_path", "dtype", "quiet", "debug"}
ACCEPTANCE_OPTIONS = {"acceptance", "audio", "device", "model_path", "quiet", "debug"}


def option_conflicts(options: Options) -> Iterator[str]:
    """Yield ``subject: problem (hint)`` for each combination of options that is not possible."""
    yield from _input_conflicts(options)
    yield from _live_conflicts(options)
    yield from _output_conflicts(options)
    if options.measure.all_chunks:
        yield from _chunk_conflicts(options)
    yield from _search_conflicts(options)
    if options.cluster.given:
        yield from _worker_conflicts(options)
    yield from _measure_conflicts(options)


def doctor_conflicts(given: argparse.Namespace, default: Callable[[str], Any]) -> Iterator[str]:
    """Yield an error line for each option of the command line that --doctor does not take."""
    for option in _others(given, default, DOCTOR_OPTIONS):
        yield f"--doctor: checks the environment (omit {option})"
    if given.output_format not in (None, ("txt",), ("json",)):
        yield "--doctor: prints txt or json"


def save_conflicts(given: argparse.Namespace, default: Callable[[str], Any]) -> Iterator[str]:
    """Yield an error line for each option of the command line that --save does not take."""
    for option in _others(given, default, SAVE_OPTIONS):
        yield f"--save: writes a checkpoint and transcribes nothing (omit {option})"


def acceptance_conflicts(given: argparse.Namespace, default: Callable[[str], Any]) -> Iterator[str]:
    """Yield an error line for each option of the command line that --acceptance does not take."""
    for option in _others(given, default, ACCEPTANCE_OPTIONS):
        yield f"--acceptance: chooses the options of its steps (omit {option})"
    if "-" in given.audio:
        yield "--acceptance: measures files, not streams"


def _others(given: argparse.Namespace, default: Callable[[str], Any], taken: set[str]) -> Iterator[str]:
    """Yield the options of the command line that are not among ``taken``."""
    for name, value in vars(given).items():
        if name not in taken and value not in (default(name), []):
            yield "AUDIO" if name == "audio" else f"--{name}"


def _input_conflicts(options: Options) -> Iterator[str]:
    given, device = options.input, options.device
    if "-" in given.audio and len(given.audio) > 1:
        yield "-: stdin cannot be combined with other inputs"
    if given.stream or given.live:
        for option in _measurements(options.measure):
            yield f"{option}: measures files, not streams"
    if given.stream and options.checks_model:
        yield "--stream: needs AUDIO"
    if given.stream and (device.batch_size or options.model.block_ms):
        yield "--stream: transcribes chunk by chunk (omit --batch_size and --block_ms)"
    if given.sample_rate and not (given.live or given.stream):
        yield "--sample_rate: applies to raw PCM on stdin and in pipes (files state their own rate)"
    if given.track > 1 and not given.audio:
        yield "--track: needs AUDIO"
    if given.raw and not (given.live or given.stream):
        yield "--raw: applies to stdin and pipes"


def _live_conflicts(options: Options) -> Iterator[str]:
    """Yield an error line for each option that needs a live stream, where there is none."""
    if options.input.stream or options.input.live:
        return
    given = {
        "--endpoint_ms": options.stream.endpoint_ms != STREAM_DEFAULTS.endpoint_ms,
        "--reset_after_pause": options.stream.reset_after_pause_ms,
        "--output_format events": "events" in options.output.formats,
    }
    for option, value in given.items():
        if value:
            yield f"{option}: applies to live streams (- or --stream)"


def _output_conflicts(options: Options) -> Iterator[str]:
    output = options.output
    if output.resume and options.input.live:
        yield "--resume: applies to files, not to stdin"
    if output.resume and not output.folder:
        yield "--resume: needs --output_dir, the folder of the earlier run"
    if output.resume:
        for option in _measurements(options.measure):
            yield f"{option}: measures all inputs (omit --resume)"
    if not any(FORMATS[name].subtitles for name in output.formats):
        for option in output.layout.options:
            yield f"--{option}: applies to subtitles (--output_format srt or vtt)"
    if output.layout.lines and output.layout.words:
        yield "--max_words_per_line: has no effect with --max_line_count (omit one)"
    if len(output.formats) > 1 and not output.folder:
        yield "--output_format: stdout takes one format (several need --output_dir)"


def _chunk_conflicts(options: Options) -> Iterator[str]:
    given = {
        "--stream": options.input.stream,
        "--precision_compare": options.measure.precision_compare,
        "--benchmark": options.measure.benchmark,
        "--output_dir": options.output.folder,
        "--wer_report": options.measure.wer_report,
    }
    for option, value in given.items():
        if value:
            yield f"--chunk_ms all: prints a table of its own (omit {option})"
    name = options.output.formats[0]
    if not FORMATS[name].tables:
        yield f"--output_format {name}: --chunk_ms all prints a table, or in json a line for each chunk length"


def _search_conflicts(options: Options) -> Iterator[str]:
    search = options.search
    if search.boost_alpha != 1 and not search.boost_words:
        yield "--boost_alpha: needs --boost_words"
    if search.boost_words and options.measure.precision_compare:
        yield "--precision_compare: compares the model alone (omit --boost_words)"


def _worker_conflicts(options: Options) -> Iterator[str]:
    option = "--num_workers" if options.cluster.num_workers else "--ray_address"
    if not options.input.audio:
        yield f"{option}: needs AUDIO"
    if options.input.live:
        yield f"{option}: applies to files and pipes, not to stdin"
    for measurement in _measurements(options.measure):
        yield f"{measurement}: measures one device (omit {option})"
    if options.measure.all_chunks:
        yield f"--chunk_ms all: loads the model in this process (omit {option})"
    device = options.device.device
    if device and ":" in device and options.cluster.many:
        kind = device.partition(":")[0]
        yield f"--device {device}: names one device for all workers (use {kind}, each gets its own)"


def _measure_conflicts(options: Options) -> Iterator[str]:
    measure = options.measure
    if measure.report and not (measure.precision_compare or measure.benchmark or measure.wer_report):
        yield "--report: needs --precision_compare, --benchmark or --wer_report"
    if measure.precision_compare and measure.wer_normalizer != MeasureOptions.wer_normalizer:
        yield "--precision_compare: its error rates are normalized by Whisper's normalizer (omit --wer_normalizer)"
    if measure.tolerances and not measure.precision_compare:
        yield "--bounds: needs --precision_compare"


def _measurements(measure: MeasureOptions) -> Iterator[str]:
    if measure.precision_compare:
        yield "--precision_compare"
    if measure.benchmark:
        yield "--benchmark"
