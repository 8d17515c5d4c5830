"""Live streams on the command line: stdin as it comes, and files as if they were live."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager

from .audio import SAMPLE_RATE
from .console import Console
from .errors import InputError, SetupError
from .results import Results, timings
from .writers import to_text

CATCH_UP_SECONDS = 5  # of sound, in which a stream may make up for the time that loading took


def listen(args, console: Console, recognizer, source, facts: dict, results: Results) -> bool:
    """Recognise stdin as it comes, until it ends or Ctrl-C, and say when the recogniser falls behind real time.

    Returns whether it was interrupted.
    """
    new_line = "\n" if sys.stdout.isatty() else ""  # the growing text has not ended its line

    def blocks():
        fed, worst = 0.0, 1.0  # seconds of sound taken; of delay that are worth a line
        waited = source.delay(0)  # while the model was loaded: only worth a line if it is not made up for soon
        for samples in source:
            results.recordings[0].facts = source.format.facts()
            yield samples
            fed += len(samples) / SAMPLE_RATE
            delay = source.delay(fed)
            if delay > worst + (waited if fed < CATCH_UP_SECONDS else 0):
                console.say(f"{new_line}{delay:.1f} s behind real time (nothing is lost)")
                worst = 2 * delay
            elif delay < 0.5 and worst > 1:
                console.say(f"{new_line}caught up with real time")
                worst = 1.0

    with first_interrupt(source.stop) as interrupted:
        try:
            show_stream(args, recognizer, blocks(), facts, results, 0)
        except InputError:
            if not interrupted():
                raise
    return interrupted()


def stream_files(args, recognizer, facts: dict, results: Results, progress) -> None:
    """Recognise files one after the other as if they were live, as fast as it goes."""
    stopped = False

    def stop():
        nonlocal stopped
        stopped = True

    def blocks(watched):
        for block in watched.blocks():
            for first in range(0, len(block), recognizer.chunk_samples):
                if stopped and results.folder:
                    raise KeyboardInterrupt  # half a recording is not done: --resume begins it again
                if stopped:
                    return
                yield block[first : first + recognizer.chunk_samples]

    with first_interrupt(stop) as interrupted:
        for place, watched in zip(results.todo, progress.watched(), strict=True):
            try:
                show_stream(args, recognizer, blocks(watched), facts, results, place)
            except SetupError:
                raise
            except Exception as error:
                results.fail(place, error)
            progress.finished()
            if interrupted():
                raise KeyboardInterrupt


def show_stream(args, recognizer, blocks, facts: dict, results: Results, place: int) -> None:
    """Recognise one stream.  On a terminal its words appear as they are recognised, else the result at the end."""
    growing = sys.stdout.isatty() and (results.folder or args.output_format == ("txt",))
    prefix = f"{results.recordings[place].name}: " if results.total > 1 else ""
    shown = ""

    def grow(text: str) -> None:  # a word that is shown is final, so the text only ever gets longer
        nonlocal shown
        if text != shown:
            print(("" if shown else prefix) + text[len(shown) :], end="", flush=True)
            shown = text

    began = time.perf_counter()
    try:
        with recognizer.stream() as stream:
            for samples in blocks:
                stream.feed(samples)
                if growing:
                    grow(" ".join(stream.text.split()))
            transcript = stream.finish()
    except BaseException:
        if shown:
            print(flush=True)  # what is said about it begins a line of its own
        raise
    if growing:
        grow(to_text(transcript))
        print("" if shown else prefix, flush=True)
    document = {**facts, "timings": timings(facts, transcript, time.perf_counter() - began)}
    results.add(place, transcript, document, shown=growing)


@contextmanager
def first_interrupt(stop):
    """Ctrl-C calls ``stop`` the first time, so that the block at hand is finished; the second time it interrupts.

    Yields a function that tells whether it came.
    """
    came = False

    def handle(*_):
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
