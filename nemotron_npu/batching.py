"""Many recordings in batch slots: audio decoded ahead, slots refilled, smaller batches when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .audio import Source, blocks
from .decoder import Emission
from .device import device_memory, is_out_of_memory, release_memory, too_little_memory, traits_of, upload
from .engine import batch_of
from .errors import one_line
from .features import FeatureStream
from .model import BLOCK_FRAMES, NO_LIMIT, Model, Step
from .streaming import RowBuffer
from .transcript import Transcript

POLL_SECONDS = 0.1  # between two calls of ``between`` while the batch waits for audio

Result = tuple[int, Transcript | Exception]
"""Index of a recording, and its transcript or error."""


def default_slots(model: Model) -> int:
    """Return the default number of batch slots.

    On a CPU the inputs of the products stay in its cache.  On other devices the states of all slots take a quarter of
    the free memory, and leave as much for the step itself.
    """
    traits = traits_of(model.device)
    if traits.cached_values:
        return min(max(traits.cached_values // model.encoder.width // BLOCK_FRAMES, 1), traits.max_slots)
    try:
        memory = device_memory(model.device)
        state = model.encoder.new_state(1, model.encoder.largest_block or BLOCK_FRAMES)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 1
    if memory is None:
        return traits.max_slots
    free, _ = memory
    return min(max(free // 4 // (2 * state.bytes), 1), traits.max_slots)


def block_frames(model: Model, slots: int) -> int:
    """Return the encoder frames of each recording in one step, for a batch of ``slots`` recordings."""
    encoder = model.encoder
    cached = traits_of(model.device).cached_values
    if cached and not model.has_fixed_block:
        frames = encoder.block_for(max(cached // encoder.width // slots, 1))
    else:
        frames = encoder.largest_block
    if frames <= model.limits.frames:
        return frames
    return encoder.block_for(model.limits.frames)


def transcribe_batches(
    model: Model, sources: Sequence[Source], slots: int, between: Callable[[], None], readers: int
) -> Iterator[Result]:
    """Yield (index, transcript or error) of each recording as soon as it is done; see ``Recognizer.results``.

    ``readers`` threads decode audio ahead; with 0 it is decoded in this thread.
    """
    pool = ThreadPoolExecutor(readers) if readers else _InlineExecutor()
    try:
        yield from _Run(model, sources, between, pool).results(deque(range(len(sources))), slots)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Run:
    """The batches of one call: when one fails, its recordings are tried again in smaller batches."""

    def __init__(self, model: Model, sources: Sequence[Source], between: Callable[[], None], pool: Executor) -> None:
        self.model = model
        self.sources = sources
        self.between = between
        self.pool = pool

    def results(self, waiting: deque[int], slots: int) -> Iterator[Result]:
        """Yield the results of the recordings with the indices ``waiting``, at most ``slots`` in a batch."""
        while waiting:
            count = max(1, min(slots, self.model.limits.slots, len(waiting)))
            batch = _Batch(self.model, count, self.between)
            error = None
            try:
                yield from batch.run(self._open(waiting, count))
            except Exception as failure:
                error = failure
            if error is None:
                return
            failed = [slot.index for slot in batch.slots if slot]
            count = len(batch.slots)
            del batch  # its device memory is needed
            if is_out_of_memory(error):
                if self._reduce(count):
                    waiting.extendleft(reversed(failed))
                else:
                    index = failed[0] if failed else waiting.popleft()
                    yield index, too_little_memory(self.model.device, error)
                del error  # its traceback holds device memory
                release_memory(self.model.device)
            else:
                yield from self._try_alone(failed, error)

    def _try_alone(self, failed: list[int], error: Exception) -> Iterator[Result]:
        """Transcribe each recording of a failed batch by itself, so that one costs no other.

        Raises ``error`` if no recording was in the batch: the next batch would fail in the same way.
        """
        if not failed:
            raise error
        if len(failed) == 1:
            yield failed[0], error
            return
        for index in failed:
            yield from self.results(deque([index]), 1)

    def _open(self, waiting: deque[int], ahead: int) -> Iterator[_Slot]:
        """Yield the recordings ``waiting``; the first blocks of up to ``ahead`` more are being decoded meanwhile.

        An index leaves ``waiting`` when its recording is taken.
        """
        opened: deque[_Slot] = deque()
        for index in list(waiting):
            opened.append(_Slot(self.model, index, self.sources[index], self.pool))
            if len(opened) > ahead:
                waiting.popleft()
                yield opened.popleft()
        while opened:
            waiting.popleft()
            yield opened.popleft()

    def _reduce(self, slots: int) -> bool:
        """Halve slots and blocks after a batch of ``slots`` ran out of memory; return False if neither can shrink."""
        encoder = self.model.encoder
        block = block_frames(self.model, slots)
        fewer = max(slots // 2, 1)
        smaller = max(block // 2, encoder.chunk) if encoder.streams else block
        if (fewer, smaller) == (slots, block):
            return False
        self.model.limits = replace(self.model.limits, slots=fewer, frames=smaller or NO_LIMIT, reported=False)
        return True


class _Batch:
    """Recordings in slots that encoder and decoder step together."""

    def __init__(self, model: Model, count: int, between: Callable[[], None]) -> None:
        self.model = model
        self.between = between
        self.slots: list[_Slot | None] = [None] * count

    def run(self, waiting: Iterator[_Slot]) -> Iterator[Result]:
        """Yield the results of the recordings ``waiting``; after an error ``slots`` has those that were running."""
        self._allocate(len(self.slots))
        while True:
            yield from self._finished()
            self.between()
            for index in range(len(self.slots)):
                yield from self._fill(index, waiting)
            busy = [index for index, slot in enumerate(self.slots) if slot]
            if not busy:
                return
            if len(busy) <= len(self.slots) // 2:  # no recording waits any more: idle slots would be encoded too
                self._compact(busy)
            self._step()
            self._report()

    def _allocate(self, count: int) -> None:
        self.block = block_frames(self.model, count)
        self.encoder_state = self.model.encoder.new_state(count, self.block)
        self.decoder_state = self.model.decoder.new_state(count)

    def _finished(self) -> Iterator[Result]:
        """Empty the slots whose recordings are done, and yield their transcripts."""
        for index, slot in enumerate(self.slots):
            if slot and slot.ended:
                self.slots[index] = None
                yield slot.index, slot.transcript()

    def _fill(self, index: int, waiting: Iterator[_Slot]) -> Iterator[Result]:
        """Fill one slot until its recording has frames to encode, or no recording is left.

        Yields the results of recordings that fail, or end without any frame.
        """
        while slot := self.slots[index] or self._start(index, next(waiting, None)):
            try:
                slot.fill(self.between)
            except Exception as error:  # of this recording alone
                self.slots[index] = None
                yield slot.index, error
                continue
            if not slot.ended:
                return
            self.slots[index] = None
            yield slot.index, slot.transcript()

    def _start(self, index: int, slot: _Slot | None) -> _Slot | None:
        """Put a new recording into a slot."""
        self.slots[index] = slot
        if slot:
            self.encoder_state.restart(index)
            self.model.decoder.restart(self.decoder_state, index)
        return slot

    def _compact(self, busy: list[int]) -> None:
        """Continue with the slots ``busy`` alone."""
        self.slots[:] = [self.slots[index] for index in busy]
        encoder_state, decoder_state = self.encoder_state, self.decoder_state
        self._allocate(len(busy))
        self.encoder_state.take(encoder_state, busy)
        self.decoder_state.take(decoder_state, busy)

    def _step(self) -> None:
        """Encode and decode the next frames of all slots."""
        model = self.model
        frames = self._next_frames()
        silence = torch.zeros(frames * model.encoder.factor, model.frontend.mels), None, 0
        taken = [slot.rows.take(frames) if slot else silence for slot in self.slots]
        rows, ends, counts = (list(column) for column in zip(*taken, strict=True))
        step = Step(upload(torch.stack(rows), model.device), self.encoder_state, ends)
        encoded = model.encoder.step(*step)
        for slot in self.slots:
            if slot:
                slot.fill_ahead()
        emissions = model.decode(encoded, self.decoder_state, counts, step)
        for slot, emitted in zip(self.slots, emissions, strict=True):
            if slot:
                slot.emissions += emitted

    def _next_frames(self) -> int:
        """Return the encoder frames of the next step."""
        encoder = self.model.encoder
        ready = [slot.rows.ready for slot in self.slots if slot]
        if encoder.streams:  # the recording with the fewest frames left sets the block; the others keep their rest
            return min(encoder.block_for(min(ready)), self.block)
        frames = max(ready)  # whole recordings: no state is carried from step to step
        self.encoder_state = encoder.new_state(len(self.slots), frames)
        return frames

    def _report(self) -> None:
        """Report once that memory ran out, as soon as a step has shown that the new limits suffice."""
        model, limits = self.model, self.model.limits
        if limits.reported:
            return
        model.limits = replace(limits, reported=True)
        batch = batch_of(limits.slots)
        if model.encoder.streams:
            batch += f" and blocks of {limits.frames * model.frame_seconds * 1000:.0f} ms"
        model.announce(one_line(str(model.device), "out of memory", f"continuing with {batch}"))


class _Slot:
    """A recording in a batch slot; ``pool`` decodes its next block of audio while the last one is encoded."""

    def __init__(self, model: Model, index: int, source: Source, pool: Executor) -> None:
        self.model = model
        self.index = index
        self.rows = RowBuffer(model)
        self.wanted = model.encoder.largest_block if model.encoder.streams else NO_LIMIT
        """Encoder frames that are read ahead."""
        self.features = FeatureStream(model.frontend)
        self.blocks = blocks(source)
        self.pool = pool
        self.next_block: Future[np.ndarray | None] = pool.submit(next, self.blocks, None)
        self.emissions: list[Emission] = []

    @property
    def ended(self) -> bool:
        """Whether all of the recording has been decoded."""
        return self.rows.ended and not self.rows.ready

    def transcript(self) -> Transcript:
        """Return the transcript so far."""
        return self.model.transcript(self.emissions, self.features.samples)

    def fill(self, between: Callable[[], None]) -> None:
        """Wait until the features of the largest block are there, or the end.  Raises InputError."""
        while self._wants_more():
            while not self.next_block.done():
                wait([self.next_block], POLL_SECONDS)
                between()
            self._take(self.next_block.result())

    def fill_ahead(self) -> None:
        """Compute the features of a block that is decoded already: the device is still working."""
        if self._wants_more() and self.next_block.done() and not self.next_block.exception():
            self._take(self.next_block.result())

    def _wants_more(self) -> bool:
        return not self.rows.ended and self.rows.ready < self.wanted

    def _take(self, samples: np.ndarray | None) -> None:
        """Add the features of the next block of samples; None ends the recording."""
        if samples is None:
            self.rows.add(self.features.finish())
            self.rows.ended = True
        else:
            self.next_block = self.pool.submit(next, self.blocks, None)
            self.rows.add(self.features.feed(torch.from_numpy(samples)))


class _InlineExecutor(Executor):
    """Runs each call at once in the calling thread."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(call(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future
