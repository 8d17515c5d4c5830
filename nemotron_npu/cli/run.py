"""One run of the program: check the request and the inputs, then transcribe.

This module and what it imports need no torch, so that wrong requests and unusable files are reported at once.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..audio import EVERY_CHANNEL, SINE, Selection, check_channel, sine
from ..boosting import digest, read_phrases
from ..checkpoint.config import ModelConfig
from ..checkpoint.config_reader import read_config
from ..checkpoint.hub import find_checkpoint, is_hub_id
from ..checkpoint.identity import read_identity
from ..cluster.connection import check_ray
from ..errors import InputError, SetupError
from ..formats import FORMATS
from ..host import signals
from ..host.packages import can_import, importing, install_command
from ..host.resources import allow_open_files
from ..live_input import LiveInput
from ..pipe_input import PipeInput, is_pipe, pipe_identity
from ..precision.tolerances import TOLERANCES, Tolerances
from ..sources import Recording, find_recordings
from .acceptance import accept
from .bundled import DEMO_CLIP, DEMO_MODEL
from .console import Console
from .delay import describe_chunks
from .exit_codes import OK, SOME_FAILED
from .live_views import report_failure, write_refusals
from .options import EACH, MIX, InputOptions, MeasureOptions, Options, OutputOptions
from .output_folder import OutputFolder
from .output_names import name_outputs
from .printer import Printer
from .progress import show_search
from .quiet import silence_libraries
from .reports import make_report_folder, report_word_errors
from .results import Results
from .run_info import RunSettings
from .session import Session

FILES_OF_PIPE = 4  # that may be open: itself, and three pipes of a decoder
OTHER_FILES = 256  # for libraries, model and results


def run(options: Options, console: Console) -> int:
    """Run with ``options``; return the exit code."""
    if options.acceptance is not None:
        return accept(options.acceptance, options, console)
    measure = options.measure
    _check_packages(options)
    if measure.report is not None:
        make_report_folder(measure.report)
    if not options.messages.debug:
        silence_libraries(quiet=options.messages.quiet)
    checkpoint = _find_checkpoint(options.model_path, console)
    config = read_config(checkpoint)
    if options.save is not None:
        return _save(checkpoint, options, console)
    if _option_that_needs_nemo(options):
        config.check_float32(checkpoint.name)
    dtype = config.choose_dtype(options.model.dtype)
    tolerances = TOLERANCES[dtype].with_changes(measure.tolerances)
    chunk_ms = _choose_chunk(config, options)
    search = options.search
    phrases = read_phrases(search.boost_words) if search.boost_words else []
    settings = RunSettings(
        model=str(checkpoint),
        chunk_ms=chunk_ms,
        dtype=dtype,
        confidence=search.confidence or _default_confidence(options.model.engine),
        boost_words=digest(phrases, search.boost_alpha),
        allow_hf32=options.model.allow_hf32,
        npu_fused=options.model.npu_fused,
        language=config.choose_language(options.model.language),
        engine=options.model.engine,
        model_id=read_identity(checkpoint, config),
        wer_normalizer=measure.wer_normalizer,
        subtitles=str(options.output.layout) or None,
    )
    left_out: Counter[str] = Counter()
    recordings, unusable = _find_recordings(options, console, left_out)
    _check_recordings(options, recordings)
    if options.input.stream:
        name_outputs(recordings, set())  # which are the names of streams, too
    with _output_folder(options.output, settings) as folder:
        printer = Printer(console, options, len(recordings) + len(unusable))
        results = Results(recordings, len(unusable), folder, printer, left_out)
        session = Session(options, checkpoint, settings, phrases, results)
        try:
            if options.input.stream:
                write_refusals(session, unusable)
            code = _transcribe(session, tolerances, config)
        except KeyboardInterrupt as stop:
            stop.args = results.missing()
            raise
    if code == OK and results.failed:
        return SOME_FAILED
    return code


def _check_packages(options: Options) -> None:
    """Raise SetupError with the command that installs what these options need."""
    given = options.input
    if options.model.engine == "nemo" and (given.stream or given.live):
        option = "--stream" if given.stream else "-"
        raise SetupError(option, "live streams need the native engine", "--engine native")
    if options.cluster.many:
        check_ray()
    needs_nemo = _option_that_needs_nemo(options)
    if needs_nemo and not can_import("nemo"):
        raise SetupError(needs_nemo, "needs NeMo, which is not installed", install_command("nemo"))
    if _draws_plots(options.measure) and not can_import("matplotlib"):
        raise SetupError("--report", "needs matplotlib, which is not installed", "pip install matplotlib")


def _option_that_needs_nemo(options: Options) -> str | None:
    if options.model.engine == "nemo":
        return "--engine nemo"
    if options.measure.precision_compare:
        return "--precision_compare"
    if options.measure.benchmark and "nemo" in options.measure.engines:
        return "--benchmark without --engine native"
    return None


def _draws_plots(measure: MeasureOptions) -> bool:
    return bool(measure.report) and (measure.precision_compare or measure.benchmark)


def _find_checkpoint(model_path: str | None, console: Console) -> Path:
    if model_path and is_hub_id(model_path):
        console.notify(f"looking for {model_path} on Hugging Face ...")
    return find_checkpoint(model_path or str(DEMO_MODEL))


def _save(checkpoint: Path, options: Options, console: Console) -> int:
    with signals.held(), importing():  # an exception during their import would crash C++ libraries
        from ..saving import save_checkpoint  # torch takes a second
    signals.check()
    console.notify(f"saving {checkpoint.name} ...")
    target = Path(options.save or "")
    parameters, size = save_checkpoint(checkpoint, target, options.model.dtype)
    console.notify(f"saved: {target}, {parameters:,} parameters, {size:,} bytes")
    return OK


def _choose_chunk(config: ModelConfig, options: Options) -> int | None:
    """Return the chunk length in use.  Raises SetupError if the checkpoint does not offer the one that was given."""
    chunk_ms, _ = config.choose_context(options.model.chunk_ms)
    if options.measure.all_chunks and not config.contexts:
        raise SetupError("--chunk_ms all", "this checkpoint does not attend in chunks")
    return chunk_ms


def _default_confidence(engine: str) -> str | None:
    return "max_prob" if engine == "native" else None


def _find_recordings(
    options: Options, console: Console, left_out: Counter[str]
) -> tuple[list[Recording], list[InputError]]:
    """Return the recordings to transcribe; report inputs that give none, and count what folders have besides."""
    if options.input.live:
        channel = options.input.channel
        number = None if isinstance(channel, str) else channel
        return [Recording("stdin", "stdin", channel=number, track=options.input.track)], []
    if not options.input.audio:
        return _bundled_recordings(options), []
    recordings = []
    unusable = []
    with show_search(console) as search:
        for found in find_recordings(list(options.input.audio), left_out):
            search.finished()
            if isinstance(found, InputError):
                console.error(str(found))
                unusable.append(found)
                continue
            try:
                found.track = options.input.track
                recordings += _channels(found, options.input)
            except InputError as error:
                console.error(str(error))
                unusable.append(error)
    return recordings, unusable


def _channels(recording: Recording, given: InputOptions) -> list[Recording]:
    """Return the recording as --channel wants it; its manifest's own choice comes first.  Raises InputError."""
    if given.channel == MIX or recording.selects_channel:
        return [recording]
    if given.channel != EACH:
        return [replace(recording, channel=int(given.channel))]
    if given.stream and is_pipe(recording.path):  # its channels are known when audio comes
        return [recording]
    with suppress(InputError):  # reported with those of the other recordings
        recording.check()
    count = recording.info.channels if recording.info else 1
    return [recording.of_channel(number) for number in range(1, count + 1)] if count > 1 else [recording]


def _bundled_recordings(options: Options) -> list[Recording]:
    """Return the clip for the bundled model, the sine for another one, and both for a comparison."""
    clip = Recording(str(DEMO_CLIP), DEMO_CLIP.stem)
    compared = options.measure.precision_compare
    if not compared and not options.model_path:
        return [clip]
    signal = Recording(SINE, "sine", samples=sine())
    return [signal, clip] if compared else [signal]


def _check_recordings(options: Options, recordings: list[Recording]) -> None:
    """Raise SetupError where these recordings do not fit the options."""
    name = options.output.formats[0]
    if not options.output.folder and len(recordings) > 1 and not FORMATS[name].concatenates:
        problem = "stdout takes one recording in this format"
        raise SetupError(f"--output_format {name}", problem, "several need --output_dir")
    given = options.input
    if given.stream and (given.sample_rate or given.raw or options.output.resume):
        has_pipe = any(is_pipe(recording.path) for recording in recordings)
        if (given.sample_rate or given.raw) and not has_pipe:
            option = "--sample_rate" if given.sample_rate else "--raw"
            raise SetupError(option, "applies to stdin and pipes", "files state their own format")
        if options.output.resume and has_pipe:
            raise SetupError("--resume", "applies to files, not to pipes")
    measure = options.measure
    needs_reference = measure.wer_report or measure.all_chunks
    if recordings and needs_reference and all(recording.reference is None for recording in recordings):
        option = "--wer_report" if measure.wer_report else "--chunk_ms all"
        problem = "no input has a reference text"
        raise SetupError(option, problem, "use a NeMo manifest whose entries have text")


def _output_folder(output: OutputOptions, settings: RunSettings) -> AbstractContextManager[OutputFolder | None]:
    if not output.folder:
        return nullcontext()
    return OutputFolder(output.folder, output.formats, settings, resume=output.resume, layout=output.layout)


def _transcribe(session: Session, tolerances: Tolerances, config: ModelConfig) -> int:
    """Transcribe what is still to be done; return the exit code, without regard to recordings that failed."""
    options = session.options
    results = session.results
    report = partial(report_failure, session) if options.input.stream or options.input.live else results.fail
    live = _open_pipes(session, report)
    results.check(report, live, lengths=options.cluster.given, sort=options.device.batch_size != 1)
    if not results.todo:
        results.conclude(0)
        report_word_errors(session, session.settings.as_dict())
        return OK
    chunk_ms = session.settings.chunk_ms
    if chunk_ms and (live or options.input.stream):
        is_chosen = options.model.chunk_ms is not None
        session.console.notify(describe_chunks(chunk_ms, config.contexts, is_chosen=is_chosen))
    if options.cluster.many:
        from .distribute import distribute  # the cluster's modules, which one process does not need

        return distribute(session, live)
    if options.measure.given:
        with signals.held(), importing():  # an exception during their import would crash C++ libraries
            from .measure import measure  # torch takes a second, the measurements 0.1 s more
        signals.check()
        return measure(session, tolerances)
    with signals.held(), importing():
        from .transcribe import transcribe  # torch takes a second
    signals.check()
    return transcribe(session, live)


def _open_pipes(session: Session, report: Callable[[int, InputError], None]) -> dict[int, LiveInput]:
    """Begin to read stdin, or the pipes among the inputs of --stream; return them by index; report the others."""
    given, results = session.options.input, session.results
    live: dict[int, LiveInput] = {}
    found = ((index, pipe_identity(results.recordings[index].path)) for index in results.todo if given.stream)
    pipes = {index: identity for index, identity in found if identity}
    if pipes:
        allow_open_files(FILES_OF_PIPE * len(pipes) + OTHER_FILES)
    opened: set[tuple[int, int]] = set()
    for index in results.todo if given.stream or given.live else ():
        recording = results.recordings[index]
        try:
            if given.live:
                live[index] = _open_stdin(recording, given)
            elif index in pipes:
                if pipes[index] in opened:
                    raise InputError(recording.path, "is named twice", "each stream needs a pipe of its own")
                opened.add(pipes[index])
                selection = _selection(recording, given)
                live[index] = PipeInput(recording.path, given.sample_rate, raw=given.raw, selection=selection)
        except InputError as error:
            report(index, error)
    return live


def _open_stdin(recording: Recording, given: InputOptions) -> LiveInput:
    if sys.stdin is None:
        raise SetupError("-", "stdin is closed", "pipe audio into it")
    selection = _selection(recording, given)
    return LiveInput(sys.stdin.fileno(), given.sample_rate, raw=given.raw, selection=selection)


def _selection(recording: Recording, given: InputOptions) -> Selection:
    """Return what to take of a pipe.  Raises InputError for what it cannot be: a part, a channel of raw PCM."""
    if recording.offset or recording.length:
        raise InputError(recording.path, "offset and duration in a manifest apply to files, not to pipes")
    if given.channel == EACH and not recording.selects_channel:
        return Selection(EVERY_CHANNEL, recording.track)
    if given.raw:
        check_channel(recording.path, recording.channel, 1)
    return recording.selection
