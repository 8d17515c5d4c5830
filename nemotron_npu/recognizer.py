"""What users hold: a recognizer of one checkpoint on one device, for recordings and for live streams."""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import audio
from .boosting import ALPHA, BoostingTree, Phrase, spell
from .cache import EncoderState
from .checkpoint.load import Checkpoint, choose_context, frame_seconds, read_checkpoint
from .checkpoint.weights import Weights
from .decoder import Decoder, Emission, NotFinite
from .device import choose_device, device_memory, is_out_of_memory, release_memory, too_little_memory, traits_of
from .dtypes import check_dtype
from .encoder import Encoder, EncoderOptions
from .engine import LocalEngine, ModelOptions, nothing
from .errors import ModelError, SetupError, Unsupported, first_line
from .features import FeatureStream, Frontend
from .host import signals
from .host.packages import can_import, install_command, offer_mock
from .sources import Recording
from .transcript import WORD_START, Speller, Transcript

Source = np.ndarray | str | Path | Recording
"""A recording: float32 [samples], mono, 16 kHz; or the path of a sound file, which is decoded piece by piece; or
anything whose ``blocks()`` gives such pieces."""

BLOCK_FRAMES = 128  # encoder frames of a block of a recording, at most: large products, bounded memory
LIVE_FRAMES = 16  # the same of a live stream, which only needs more than a chunk to catch up
READERS = 4  # threads that decode sound
WAIT_SECONDS = 0.1  # between two looks while sound is waited for
SETTLE_TOKENS = 256  # of a live stream, spelled again at each look
DEFAULTS = ModelOptions()
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm: stored, but no parameters


class Recognizer:
    """The native engine.  ``nemo_engine.NemoRecognizer`` answers the same calls but ``stream``.

    Parameters
    ----------
    path : a ``.nemo`` file.
    device : where the encoder runs, a torch.device or ``"npu:0"``, ``"cuda:0"``, ``"cpu"``.  Log-mel is computed on the
        CPU.
    options : chunk length, dtype, device of the decoder, graph capture, block length; ``engine`` is not looked at.
    announce : is told in one line when memory ran out, and with how much less it goes on.

    Several threads may use one recognizer: recordings in each, or streams, a stream in one of them at a time.
    Raises SetupError when the checkpoint cannot be used at all, Unsupported when this engine does not know its kind.
    """

    engine = "native"
    readers = READERS
    """Threads that decode sound ahead; with 0 it is decoded in the caller's."""

    def __init__(
        self,
        path: Path | str,
        device: torch.device | str,
        *,
        options: ModelOptions = DEFAULTS,
        announce: Callable[[str], None] = warnings.warn,
    ):
        path, device = Path(path), _device(device)
        traits = traits_of(device)
        dtype, block_ms, record = options.dtype, options.block_ms, options.graph
        decoder_device = _device(options.decoder_device or "cpu")
        if record and not traits.graph:
            raise SetupError("--graph on", f"{traits.kind} has no graphs to capture", "use npu:N or cuda:N")
        check_dtype(dtype, device)
        config, tensors, tokenizers = read_checkpoint(path)
        self.config = config
        self.device = device
        self.chunk_ms, context = choose_context(config, options.chunk_ms)
        """Chunk length in use; None for a checkpoint that does not attend in chunks."""
        self.frame_seconds = frame_seconds(config)
        """Seconds of sound in one encoder frame."""
        if config["tokenizer"]["type"] != "bpe":
            raise Unsupported("a tokenizer for each language")
        self.tokenizer = tokenizers[0]
        pieces = [self.tokenizer.id_to_piece(i) for i in range(self.tokenizer.get_piece_size())]
        self.speller = Speller(pieces, self.tokenizer.decode, self.frame_seconds)
        self.dtype = dtype
        taken: set[str] = set()
        host = Weights(tensors, torch.device("cpu"), torch.float32, taken=taken)
        search = Weights(tensors, decoder_device, torch.float32, taken=taken)
        encoder = Weights(tensors, device, traits.storage_dtype(dtype), "encoder.", taken)
        try:
            self.frontend = Frontend(config, host.inside("preprocessor.featurizer."))
            self.decoder = Decoder(config, search, dtype if traits.is_host else "float32")
            frames = round(block_ms / 1000 / self.frame_seconds) if block_ms else BLOCK_FRAMES
            self.encoder = Encoder(config["encoder"], encoder, EncoderOptions(context, frames, dtype, record))
            host.check_all_taken()
        except SetupError as error:
            raise SetupError(f"{path}: {error}") from error
        self.parameters = _count(tensors)
        """Number of weights."""
        self.block_frames = frames if block_ms else None
        self.announce = announce
        self.most_slots = self.most_frames = math.inf
        """What memory held, once it has run out: recordings side by side, and frames of their blocks."""
        self.told = True

    @property
    def chunk_samples(self) -> int:
        """Samples of a chunk at 16 kHz."""
        return round(self.encoder.chunk * self.frame_seconds * audio.SAMPLE_RATE)

    # ------------------------------------------------------------------ settings

    def measure_confidence(self, method: str) -> None:
        """Measure the tokens' confidence by one of ``confidence.METHODS``; ``"max_prob"`` unless asked for another."""
        self.decoder.confidence = method

    def boost(self, phrases: list[Phrase], alpha: float = ALPHA) -> list[Phrase]:
        """Prefer ``phrases`` in recordings and streams that begin from now on; those that it cannot spell are returned.

        An empty list prefers nothing again.
        """
        spelled, unknown = spell(phrases, self.tokenizer.encode, self.tokenizer.unk_id())
        tree = BoostingTree(spelled, self.decoder.blank, alpha, self.decoder.device)
        self.decoder.boosting = tree if spelled else None
        return unknown

    def at_chunk(self, chunk_ms: int) -> Recognizer:
        """The same with another chunk of attention; the weights are shared.  Raises SetupError if it is not offered."""
        other = copy.copy(self)
        other.chunk_ms, context = choose_context(self.config, chunk_ms)
        other.encoder = self.encoder.at_context(context)
        return other

    # ------------------------------------------------------------------ recordings

    @property
    def batch_slots(self) -> int:
        """Recordings side by side where nothing else is asked for: on a CPU as many as keep the products' inputs in its
        cache, elsewhere as many as fit into a quarter of the free memory, with as much again for the step itself."""
        traits = traits_of(self.device)
        if traits.cached_values:
            return min(max(traits.cached_values // self.encoder.width // BLOCK_FRAMES, 1), traits.max_slots)
        try:
            free, _ = device_memory(self.device)
            state = self.encoder.new_state(1, self.encoder.largest_block or BLOCK_FRAMES)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return 1
        return min(max(free // 4 // (2 * state.bytes), 1), traits.max_slots)

    def block(self, slots: int) -> int:
        """Frames of each recording that are encoded at once when so many are side by side."""
        cached = traits_of(self.device).cached_values
        if cached and not self.block_frames:
            frames = self.encoder.block_for(max(cached // self.encoder.width // slots, 1))
        else:
            frames = self.encoder.largest_block
        return frames if frames <= self.most_frames else self.encoder.block_for(self.most_frames)

    def transcribe(self, sources: Source | list[Source], slots: int = 1) -> Transcript | list[Transcript]:
        """Transcribe one recording, or a list of them ``slots`` at a time; a list gives a list, in the same order.

        Raises what the first failure raised.
        """
        if audio.is_source(sources):
            return self.transcribe([sources])[0]
        results: list = [None] * len(sources)
        for index, result in self.results(sources, slots):
            if isinstance(result, Exception):
                raise result
            results[index] = result
        return results

    def results(
        self, sources: Sequence[Source], slots: int = 1, between: Callable[[], None] = nothing
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """Yield (index, transcript or what went wrong) of each recording as soon as it is done.

        A slot whose recording ends takes the next one, whose sound is being decoded already.  ``between`` is called
        between blocks and while sound is waited for; a KeyboardInterrupt that it raises ends the run.
        Where memory runs out, fewer recordings go on in smaller blocks, those in the slots from their beginnings.
        Any other failure inside the model is tried again with each recording alone, so that one costs no other.
        """
        pool = ThreadPoolExecutor(self.readers) if self.readers else _Here()
        try:
            yield from self._results(sources, deque(range(len(sources))), slots, pool, between)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _results(self, sources, waiting: deque[int], slots: int, pool: Executor, between) -> Iterator:
        """The same of the recordings whose indices are ``waiting``."""
        while waiting:
            running: list[_Slot | None] = [None] * max(1, min(slots, self.most_slots, len(waiting)))
            error = None
            try:
                yield from self._run(self._opened(sources, waiting, len(running), pool), running, between)
            except Exception as failure:
                error = failure
            failed, used = [slot.index for slot in running if slot], len(running)
            del running  # what it holds on the device is needed
            if error is None:
                return
            if is_out_of_memory(error):
                if self._take_less(used):
                    waiting.extendleft(reversed(failed))
                else:
                    yield (failed or [waiting.popleft()])[0], too_little_memory(self.device, error)
                del error
                release_memory(self.device)
            elif not failed:
                raise error  # of no recording: the next would fail in the same way
            elif len(failed) == 1:
                yield failed[0], error
            else:
                for index in failed:
                    yield from self._results(sources, deque([index]), 1, pool, between)

    def _opened(self, sources, waiting: deque[int], ahead: int, pool: Executor) -> Iterator[_Slot]:
        """The recordings ``waiting``, which one leaves when it is taken; of ``ahead`` more the first piece of sound is
        being decoded."""
        opened = deque()
        for index in list(waiting):
            opened.append(_Slot(self, index, sources[index], pool))
            if len(opened) > ahead:
                waiting.popleft()
                yield opened.popleft()
        while opened:
            waiting.popleft()
            yield opened.popleft()

    def _take_less(self, slots: int) -> bool:
        """Halve recordings side by side and blocks, now that so many were too much; False if that is not possible."""
        block = self.block(slots)
        fewer, smaller = max(slots // 2, 1), max(block // 2, self.encoder.chunk) if self.encoder.streams else block
        if (fewer, smaller) == (slots, block):
            return False
        self.most_slots, self.most_frames, self.told = fewer, smaller or math.inf, False
        return True

    def _tell(self) -> None:
        """Say once, as soon as it is seen to suffice, that memory ran out."""
        if not self.told:
            self.told = True
            blocks = f"blocks of {self.most_frames * self.frame_seconds * 1000:.0f} ms"
            many = f"{self.most_slots} recording{'s' * (self.most_slots > 1)} at a time"
            more = f" and {blocks}" if self.encoder.streams else ""
            self.announce(f"{self.device} is out of memory: going on with {many}{more}")

    def _run(self, waiting: Iterator[_Slot], running: list[_Slot | None], between: Callable[[], None]) -> Iterator:
        """Yield (index, result) of the recordings ``waiting``; ``running`` holds those that are in the slots."""
        encoder, decoder = self.encoder, self.decoder
        block = self.block(len(running))
        encoder_state = encoder.new_state(len(running), block)
        decoder_state = decoder.new_state(len(running))
        while True:
            for place, slot in enumerate(running):
                if slot and slot.ended:
                    running[place] = None
                    yield slot.index, slot.transcript()
            between()
            for place in range(len(running)):
                while True:  # until this slot has frames to encode, or there is nothing left to recognise
                    slot = running[place]
                    if slot is None:
                        slot = running[place] = next(waiting, None)
                        if slot is None:
                            break
                        encoder_state.restart(place)
                        decoder.restart(decoder_state, place)
                    try:
                        slot.fill(between)
                    except Exception as error:  # of this recording alone
                        running[place] = None
                        yield slot.index, error
                        continue
                    if not slot.ended:
                        break
                    running[place] = None
                    yield slot.index, slot.transcript()
            busy = [place for place, slot in enumerate(running) if slot]
            if not busy:
                return
            if len(busy) <= len(running) // 2:  # nothing is waiting any more: idle slots would be encoded for nothing
                running[:] = [running[place] for place in busy]
                before, encoder_state = encoder_state, encoder.new_state(len(busy), block := self.block(len(busy)))
                encoder_state.take(before, busy)
                before, decoder_state = decoder_state, decoder.new_state(len(busy))
                decoder_state.take(before, busy)
            # the recording that has the least left sets the block: what the others have left waits for the next one
            ready = [slot.rows.ready for slot in running if slot]
            if encoder.streams:
                frames = min(encoder.block_for(min(ready)), block)
            else:  # whole recordings: nothing is carried from block to block
                frames = max(ready)
                encoder_state = encoder.new_state(len(running), frames)
            silence = torch.zeros(frames * encoder.factor, self.frontend.mels), None, 0
            rows, ends, counts = zip(*(slot.rows.take(frames) if slot else silence for slot in running), strict=True)
            features = torch.stack(rows).to(self.device)
            encoded = encoder.step(features, encoder_state, ends)
            for slot in running:
                if slot:
                    slot.fill_ahead()
            try:
                emissions = decoder.step(encoded.to(decoder.device), decoder_state, counts)
            except NotFinite as bad:
                raise self.not_finite(bad, features, encoder_state, ends) from bad
            for slot, emitted in zip(running, emissions, strict=True):
                if slot:
                    slot.emissions += emitted
            self._tell()

    def stream(self) -> Stream:
        """A live stream: ``with recognizer.stream() as s: s.feed(samples); s.text``.

        Raises SetupError for a checkpoint that attends to the whole recording.
        """
        if not self.encoder.streams:
            raise SetupError("this checkpoint attends to the whole recording: it cannot recognise a live stream")
        return Stream(self)

    # ------------------------------------------------------------------ the steps alone, for comparisons

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel features float32 [B, mels, T] and their valid lengths int64 [B], on the device.

        T is one more than the longest, as NeMo has it; what lies behind a length is 0.
        """
        features = [FeatureStream(self.frontend).finish(torch.from_numpy(waveform)) for waveform in waveforms]
        lengths = torch.tensor([len(f) for f in features])
        padded = torch.zeros(len(features), max(map(len, features)) + 1, self.frontend.mels)
        for row, f in zip(padded, features, strict=True):
            row[: len(f)] = f
        return padded.transpose(1, 2).to(self.device), lengths.to(self.device)

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output float32 [B, width, frames] and its valid lengths int64 [B], on the device."""
        encoder = self.encoder
        valid = lengths.tolist()
        frames = [encoder.frames(length) for length in valid]
        block = encoder.block_for(max(frames))
        total = -(-max(frames) // block) * block
        behind = max(0, total * encoder.factor - encoder.lead - features.shape[2])
        rows = F.pad(features.transpose(1, 2), (0, 0, encoder.lead, behind))
        state = encoder.new_state(len(valid), block)
        outputs = []
        for first in range(0, total, block):
            ends = [length if count <= first + block else None for length, count in zip(valid, frames, strict=True)]
            part = rows[:, first * encoder.factor : (first + block) * encoder.factor]
            outputs.append(encoder.step(part, state, ends))
        encoded = (torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0])[:, : max(frames)].transpose(1, 2)
        return encoded, torch.tensor(frames).to(self.device)

    # ------------------------------------------------------------------ results

    def not_finite(self, bad: NotFinite, features: torch.Tensor, state: EncoderState, ends: list) -> ModelError:
        """What to say of an encoder step, with these arguments, in whose output the search met ``bad``."""
        found = self.encoder.first_not_finite(features, state, ends)
        if found:
            part, _, frame = found
            what = f"the encoder's output is not finite (NaN or infinity), first that of {part}"
        else:
            what, frame = "the scores of the tokens are not finite (NaN or infinity)", bad.frame
        remedy = "the checkpoint may be damaged" + ("" if traits_of(self.device).is_host else ": --device cpu tells")
        if self.dtype == "float16":
            remedy = "float16 ends at 65504: take --dtype bfloat16 or float32"
        return ModelError(f"{what}, at {frame * self.frame_seconds:.2f} s: {remedy}")

    def transcript(self, emissions: list[Emission], samples: int) -> Transcript:
        """The result type of a recording of so many samples."""
        return self.speller.transcript(emissions, samples / audio.SAMPLE_RATE)


class _Here(Executor):
    """Does at once, in this thread, what a pool would do in another."""

    def submit(self, call, *arguments) -> Future:
        future = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class _Rows:
    """The feature rows of one recording on their way to the encoder, behind the silence in front of its first."""

    def __init__(self, recognizer: Recognizer):
        self.encoder = recognizer.encoder
        self.waiting = torch.zeros(self.encoder.lead, recognizer.frontend.mels)
        self.features = 0
        """Feature frames so far."""
        self.position = 0
        """Encoder frames taken."""
        self.ended = False

    def add(self, features: torch.Tensor) -> None:
        self.waiting = torch.cat([self.waiting, features])
        self.features += len(features)

    @property
    def ready(self) -> int:
        """Encoder frames that can be encoded: all that are left of a recording that has ended."""
        if self.ended:
            return self.encoder.frames(self.features) - self.position if self.features else 0
        return len(self.waiting) // self.encoder.factor

    def take(self, frames: int) -> tuple[torch.Tensor, int | None, int]:
        """The next rows float32 [frames * factor, mels], padded with 0; the recording's features if it ends in them;
        and how many of the frames are its own."""
        count = min(self.ready, frames)
        end = self.features if self.ended and self.ready <= frames else None
        rows = self.waiting[: frames * self.encoder.factor]
        self.waiting = self.waiting[len(rows) :]
        self.position += count
        return F.pad(rows, (0, 0, 0, frames * self.encoder.factor - len(rows))), end, count


class _Slot:
    """A recording that is being recognised; ``pool`` decodes its next piece of sound while the last one is encoded."""

    def __init__(self, recognizer: Recognizer, index: int, source: Source, pool: Executor):
        self.recognizer, self.index = recognizer, index
        self.rows = _Rows(recognizer)
        self.block = recognizer.encoder.largest_block if recognizer.encoder.streams else math.inf
        self.features = FeatureStream(recognizer.frontend)
        self.pieces = audio.blocks(source)
        self.pool = pool
        self.coming = pool.submit(next, self.pieces, None)
        self.emissions: list[Emission] = []

    @property
    def ended(self) -> bool:
        """Whether all of it is recognised."""
        return self.rows.ended and not self.rows.ready

    def transcript(self) -> Transcript:
        return self.recognizer.transcript(self.emissions, self.features.samples)

    def fill(self, between: Callable[[], None]) -> None:
        """Wait until the features of the largest block are there, or the end.  Raises InputError."""
        while not self.rows.ended and self.rows.ready < self.block:
            while not self.coming.done():
                wait([self.coming], WAIT_SECONDS)
                between()
            self._take(self.coming.result())

    def fill_ahead(self) -> None:
        """Take a piece that is decoded already: there is time for its features while the device works."""
        if not self.rows.ended and self.rows.ready < self.block and self.coming.done() and not self.coming.exception():
            self._take(self.coming.result())

    def _take(self, samples: np.ndarray | None) -> None:
        if samples is None:
            self.rows.add(self.features.finish())
            self.rows.ended = True
        else:
            self.coming = self.pool.submit(next, self.pieces, None)
            self.rows.add(self.features.feed(torch.from_numpy(samples)))


class Stream:
    """One live stream; made by ``Recognizer.stream``.  Leaving its ``with`` block finishes it.

    Words are final as soon as they appear: the search never takes one back.
    """

    def __init__(self, recognizer: Recognizer):
        self.recognizer = recognizer
        self.chunk = recognizer.encoder.chunk
        self.block = max(self.chunk, LIVE_FRAMES // self.chunk * self.chunk)
        self.features = FeatureStream(recognizer.frontend)
        self.rows = _Rows(recognizer)
        self.encoder_state = recognizer.encoder.new_state(1, self.block)
        self.decoder_state = recognizer.decoder.new_state(1)
        self.emissions: list[Emission] = []
        self.settled = 0  # tokens whose words are in settled_text, so that a long stream is not spelled again and again
        self.settled_text = ""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.finish()

    def feed(self, samples: np.ndarray) -> None:
        """Recognise the next samples, float32 [any number], mono, 16 kHz, as far as they fill whole chunks.

        Raises ValueError for samples of another shape or after the end, ModelError when what the model makes of them is
        not finite: the stream is over, ``heard`` is what it got until then.
        """
        if self.rows.ended:
            raise ValueError("the stream has ended: begin a new one")
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples have shape {list(samples.shape)}: one channel is wanted, [samples]")
        self.rows.add(self.features.feed(torch.from_numpy(samples)))
        while self.rows.ready >= self.chunk:
            self._step(min(self.rows.ready // self.chunk * self.chunk, self.block))

    def finish(self) -> Transcript:
        """Recognise what is left: the sound has ended.  The final transcript."""
        if not self.rows.ended:
            self.rows.add(self.features.finish())
            self.rows.ended = True
            if self.rows.ready:
                self._step(self.chunk)
        return self.heard()

    def heard(self) -> Transcript:
        """What has been recognised so far, as a transcript."""
        return self.recognizer.transcript(self.emissions, self.features.samples)

    @property
    def text(self) -> str:
        """What has been recognised so far."""
        speller = self.recognizer.speller
        waiting = self.emissions[self.settled :]
        if len(waiting) > SETTLE_TOKENS:
            starts = [i for i, e in enumerate(waiting) if speller.pieces[e.id].startswith(WORD_START)]
            if starts and starts[-1]:
                self.settled_text = self._joined(speller.text([e.id for e in waiting[: starts[-1]]]))
                self.settled += starts[-1]
                waiting = waiting[starts[-1] :]
        return self._joined(speller.text([e.id for e in waiting]))

    def _joined(self, text: str) -> str:
        return self.settled_text + self.recognizer.speller.tidy(f" {text}") if self.settled else text

    @property
    def seconds(self) -> float:
        """Sound fed so far."""
        return self.features.samples / audio.SAMPLE_RATE

    def _step(self, frames: int) -> None:
        """Recognise the next frames.  If memory runs out, those behind the first chunk are left for smaller steps."""
        recognizer, state = self.recognizer, self.encoder_state
        kept = [row.clone() for row in state.kept_rows] if frames > self.chunk else None  # live, it is one chunk
        before = copy.copy(self.rows)
        rows, end, count = self.rows.take(frames)
        try:
            features = rows[None].to(recognizer.device)
            encoded = recognizer.encoder.step(features, state, [end])
        except Exception as error:
            if kept is None or not is_out_of_memory(error):
                raise
            encoded = None
        if encoded is None:
            for row, copied in zip(state.kept_rows, kept, strict=True):
                row.copy_(copied)
            self.rows, self.block = before, max(frames // 2 // self.chunk, 1) * self.chunk
            release_memory(recognizer.device)
            blocks = f"blocks of {self.block * recognizer.frame_seconds * 1000:.0f} ms"
            recognizer.announce(f"{recognizer.device} is out of memory: going on with {blocks}")
            return
        try:
            self.emissions += recognizer.decoder.step(
                encoded.to(recognizer.decoder.device), self.decoder_state, [count]
            )[0]
        except NotFinite as bad:
            raise recognizer.not_finite(bad, features, state, [end]) from bad


def load_recognizer(
    path: Path | str,
    device: torch.device | str,
    *,
    options: ModelOptions = DEFAULTS,
    announce: Callable[[str], None] = warnings.warn,
) -> LocalEngine:
    """Load the checkpoint ``path`` onto ``device``, ``"npu:0"`` say, in the engine that ``options`` names.

    A checkpoint that the native engine does not support runs on stock NeMo, which ``announce`` is told in one line.
    Raises SetupError when the checkpoint cannot be used, does not offer that chunk size, or needs NeMo where that is
    not installed, and when the device is not usable.
    """
    path, device, why = Path(path), _device(device), "--engine nemo"
    if options.engine == "native":
        try:
            return Recognizer(path, device, options=options, announce=announce)
        except Unsupported as reason:
            why = f"{path.name}: not supported by the native engine: {reason}"
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise SetupError(f"{device} has not enough memory for {path.name}: {first_line(error)}") from error
    if not can_import("nemo"):
        raise SetupError(f"{why}: NeMo is not installed: {install_command('nemo')}")
    if options.engine == "native":
        announce(f"{why}: running on NeMo")
    if options.dtype != "float32":
        raise SetupError(f"--dtype {options.dtype} needs the native engine: NeMo runs in float32 here")
    given = {
        "--graph on": options.graph,
        "--block_ms": options.block_ms,
        "--decoder_device": options.decoder_device,
    }
    for option, value in given.items():
        if value:
            raise SetupError(f"{option} needs the native engine")
    checkpoint = read_checkpoint(path)
    _check_fit(path, checkpoint)
    with signals.held():  # as in app.py
        offer_mock()
        from .nemo_engine import NemoRecognizer
    signals.check()
    return NemoRecognizer(path, device, options=options, announce=announce, checkpoint=checkpoint)


def _device(device: torch.device | str) -> torch.device:
    return choose_device(device)[0] if isinstance(device, str) else device


def _check_fit(path: Path, checkpoint: Checkpoint) -> None:
    """Raise SetupError if the weights do not fit the config, as far as the native engine knows its kind.

    Its parts are made of them, without copies where that can be: NeMo would take many seconds to say the same.
    """
    config = checkpoint.config
    weights = Weights(checkpoint.tensors, torch.device("cpu"), torch.float32)
    try:
        Frontend(config, weights.inside("preprocessor.featurizer."))
        Decoder(config, weights, "plain")
        Encoder(config["encoder"], weights.inside("encoder."), EncoderOptions(dtype="plain"))
        weights.check_all_taken()
    except SetupError as error:
        raise SetupError(f"{path}: {error}") from error
    except Unsupported:
        pass


def _count(tensors: dict[str, torch.Tensor]) -> int:
    """Number of parameters; what two layers share counts once."""
    parameters = {
        tensor.data_ptr(): tensor.numel()
        for name, tensor in tensors.items()
        if not name.startswith("preprocessor.") and not name.endswith(BUFFERS)
    }
    return sum(parameters.values())
