"""Checks of ``--doctor`` that load the model and transcribe with it."""

from __future__ import annotations

import time

import numpy as np
import torch

from ..audio import read_audio, sine
from ..checkpoint.load import read_tensors
from ..device import choose_device, traits_of
from ..engine import ModelOptions
from ..errors import SetupError, Unsupported
from ..host.packages import can_import, install_command
from ..host.program import command
from ..precision.metrics import difference
from ..precision.tolerances import TOLERANCES
from ..recognizer import Recognizer, load_recognizer
from ..transcript import Transcript
from .checkpoint import REPLACE, find, without_folders
from .finding import OK, PROBLEM, SKIPPED, WARNING, Context, Finding, error_text

DEMO_WORDS = "three one four one five nine two six"
BLOCK_SAMPLES = 1600  # 0.1 s, which a live stream gets in one call


def engine(context: Context) -> list[Finding]:
    """Load the native engine on the CPU."""
    notes: list[str] = []
    try:
        context.reference = Recognizer(find(context), torch.device("cpu"), announce=notes.append)
    except Unsupported as reason:
        found = f"the native engine does not support {error_text(reason)}"
        if can_import("nemo"):
            return [Finding(WARNING, f"{found}; NeMo runs this checkpoint", "--engine nemo")]
        return [Finding(PROBLEM, f"{found}, and NeMo is not installed", install_command("nemo"))]
    except SetupError as error:
        return [Finding(PROBLEM, without_folders(context, error), REPLACE)]
    stored = read_tensors(find(context), context.reference.config)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()}
    saved = " and ".join(sorted(dtypes))
    found = f"{context.reference.parameters:,} parameters, saved in {saved}: the native engine runs it"
    return [Finding(OK, found), *(Finding(OK, note) for note in notes)]


def forward_pass(context: Context) -> list[Finding]:
    """Transcribe the bundled recording: compare a device, or NeMo, with the CPU; on the CPU, a stream with a file."""
    chosen, _ = choose_device(context.device)
    if context.reference is None:
        return [Finding(SKIPPED, "engine")]
    speech = read_audio(str(context.clip)) if context.clip.exists() else sine()
    try:
        if traits_of(chosen).is_host and context.engine == "native":
            equal, found = _compare_stream(context, context.reference, speech)
        else:
            equal, found = _compare_device(context, context.reference, speech)
    except Exception as error:  # an operator that the device lacks, values that are not finite ...
        equal = False
        found = f"fails on {chosen}: {type(error).__name__}: {without_folders(context, error)}"
    if equal:
        return [Finding(OK, found)]
    return [Finding(PROBLEM, found, f"{command()} --device {chosen} --precision_compare   (compares each stage)")]


def _compare_stream(context: Context, recognizer: Recognizer, speech: np.ndarray) -> tuple[bool, str]:
    """Compare the transcript of a file with the expected words, and with that of a live stream."""
    began = time.perf_counter()
    (transcript,) = recognizer.transcribe([speech])
    seconds = time.perf_counter() - began
    if context.model_path is None and context.clip.exists() and transcript.text != DEMO_WORDS:
        return False, f"the CPU transcribes {transcript.text!r} instead of {DEMO_WORDS!r}"
    found = f"{transcript.duration:.1f} s of audio in {seconds:.2f} s on the CPU: {len(transcript.tokens)} tokens"
    if not recognizer.encoder.streams:
        return True, found
    with recognizer.stream() as stream:
        for first in range(0, len(speech), BLOCK_SAMPLES):
            stream.feed(speech[first : first + BLOCK_SAMPLES])
    equal = _tokens(stream.finish()) == _tokens(transcript)
    verdict = "the same tokens" if equal else "other tokens"
    return equal, f"{found}; a live stream gives {verdict}"


def _compare_device(context: Context, reference: Recognizer, speech: np.ndarray) -> tuple[bool, str]:
    """Compare encoder output and tokens of device and engine with those of the native engine on the CPU."""
    chosen, _ = choose_device(context.device)
    candidate = load_recognizer(find(context), chosen, options=ModelOptions(context.engine), announce=lambda _: None)
    engines = (candidate, reference)
    encoded = [engine.encode(*engine.preprocess([speech]))[0].float().cpu() for engine in engines]
    error = difference(*encoded)
    ours, theirs = (_tokens(engine.transcribe([speech])[0]) for engine in engines)
    verdict = "equal" if ours == theirs else "not equal"
    found = (
        f"encoder of {chosen} ({context.engine}) against the CPU (native): largest difference "
        f"{error.max_error:.2g} ({error.relative_error_percent:.2g} %), {len(theirs)} tokens {verdict}"
    )
    return ours == theirs and error.relative_error_percent <= TOLERANCES["float32"].encoder, found  # False for NaN


def _tokens(transcript: Transcript) -> list[tuple[int, int]]:
    return [(token.id, token.frame) for token in transcript.tokens]
