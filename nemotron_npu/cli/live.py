"""Live streams on the command line: stdin as it comes, and files as if they were live."""

from __future__ import annotations

import re
import sys
import time

from ..audio import SAMPLE_RATE
from ..errors import InputError, ModelError, SetupError
from ..formats import to_text
from ..host import signals
from .console import Console
from .results import Results, timings

CATCH_UP_SECONDS = 5  # of sound, in which a stream may make up for the time that loading took


def listen(args, console: Console, recognizer, source, facts: dict, results: Results) -> None:
    """Recognise stdin as it comes, until it ends or Ctrl-C, and say when the recogniser falls behind real time.

    Raises InputError when stdin cannot be read or breaks off; what was heard until then is shown before.
    """
    new_line = "\n" if sys.stdout.isatty() else ""  # the growing text has not ended its line

    def blocks():
        fed, worst = 0.0, 1.0  # seconds of sound taken; of delay that are worth a line
        waited = source.delay(0)  # while the model was loaded: only worth a line if it is not made up for soon
        for samples in source:
            results.recordings[0].info = source.format.info
            yield samples
            fed += len(samples) / SAMPLE_RATE
            delay = source.delay(fed)
            if delay > worst + (waited if fed < CATCH_UP_SECONDS else 0):
                console.say(f"{new_line}{delay:.1f} s behind real time (nothing is lost)")
                worst = 2 * delay
            elif delay < 0.5 and worst > 1:
                console.say(f"{new_line}caught up with real time")
                worst = 1.0

    with signals.held(source.stop):
        try:
            show_stream(args, recognizer, blocks(), facts, results, 0)
        except InputError:
            if not signals.came():
                raise
        except ModelError as error:
            results.fail(0, error)


def stream_files(args, recognizer, facts: dict, results: Results, progress) -> None:
    """Recognise files one after the other as if they were live, as fast as it goes."""

    def blocks(watched):
        for block in watched.blocks():
            for first in range(0, len(block), recognizer.chunk_samples):
                if results.folder:
                    signals.check()  # half a recording is not done: --resume begins it again
                if signals.came():
                    return
                yield block[first : first + recognizer.chunk_samples]

    with signals.held():
        for place, watched in zip(results.todo, progress.watched(), strict=True):
            try:
                show_stream(args, recognizer, blocks(watched), facts, results, place)
            except (SetupError, BrokenPipeError):  # of all streams
                raise
            except Exception as error:
                results.fail(place, error)
            progress.finished()
            signals.check()


def show_stream(args, recognizer, blocks, facts: dict, results: Results, place: int) -> None:
    """Recognise one stream.  On a terminal its words appear as they are recognised, else the result at the end.

    What a live one said before it broke off is kept: nobody can say it again.
    """
    growing = sys.stdout.isatty() and (results.folder or args.output_format == ("txt",))
    prefix = f"{results.recordings[place].name}: " if results.total > 1 else ""
    console, shown, taken = results.console, 0, 0  # characters on the terminal, and of the stream's text

    def show(text: str) -> None:
        nonlocal shown
        if text:
            console.result(text if shown else prefix + text, end="")
            shown += len(text)

    def grow(text: str) -> None:  # a word that is there is final, so the text only ever gets longer
        nonlocal taken
        text = text.rstrip()
        new, taken = re.sub(r"\s+", " ", text[taken:]), len(text)
        show(new if shown else new.lstrip())

    def end_line() -> None:  # what is said about it begins a line of its own
        if shown:
            console.result("")

    began, broken = time.perf_counter(), None
    stream = recognizer.stream()
    try:
        for samples in blocks:
            stream.feed(samples)
            if growing:
                grow(stream.text)
        transcript = stream.finish()
    except (InputError, ModelError) as error:
        if args.audio != ["-"] or not stream.seconds:
            end_line()
            raise
        transcript, broken = stream.finish() if isinstance(error, InputError) else stream.heard(), error
    except BaseException:
        end_line()
        raise
    if growing:
        show(to_text(transcript)[shown:])
        console.result("" if shown else prefix)
    document = {**facts, "timings": timings(facts, transcript, time.perf_counter() - began)}
    results.add(place, transcript, document, shown=growing)
    if broken:
        raise broken
