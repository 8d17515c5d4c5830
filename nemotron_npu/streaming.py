"""Live streams, and the buffer of feature rows that streams and batches share."""

from __future__ import annotations

import copy
from types import TracebackType

import torch
import torch.nn.functional as F

from .audio import SAMPLE_RATE, Samples, to_samples
from .cache import EncoderState
from .decoder import DecoderState, Emission
from .device import is_out_of_memory, release_memory, upload
from .engine import STREAM_DEFAULTS, StreamOptions
from .errors import ModelError, one_line
from .features import FeatureStream
from .model import Model, Step
from .spelling import WORD_START
from .transcript import Transcript, Word
from .utterances import LiveEvent, Utterances

LIVE_FRAMES = 16  # encoder frames in one step of a live stream, at most: more than a chunk only helps to catch up
SETTLE_TOKENS = 256  # tokens of a live stream that are spelled again for each ``Stream.text``


class RowBuffer:
    """The feature rows of one recording that wait for the encoder, after the zeros that precede the first."""

    def __init__(self, model: Model) -> None:
        self.encoder = model.encoder
        self.rows = torch.zeros(self.encoder.lead, model.frontend.mels)
        """Waiting rows, float32 [rows, mels]."""
        self.features = 0
        """Features added so far."""
        self.position = 0
        """Encoder frames taken so far."""
        self.ended = False
        """Whether all features of the recording have been added."""

    def add(self, features: torch.Tensor) -> None:
        """Append features, float32 [features, mels]."""
        self.rows = torch.cat([self.rows, features])
        self.features += len(features)

    @property
    def ready(self) -> int:
        """Encoder frames that can be encoded: all that are left once the recording has ended."""
        if not self.ended:
            return len(self.rows) // self.encoder.factor
        if not self.features:
            return 0
        return self.encoder.frames(self.features) - self.position

    def take(self, frames: int) -> tuple[torch.Tensor, int | None, int]:
        """Remove and return the rows of the next encoder frames.

        Returns (rows, end, count): ``rows`` is float32 [frames * factor, mels], padded with zeros; ``end`` is the
        number of features of the recording if it ends in these rows, else None; ``count`` of the frames belong to it.
        """
        count = min(self.ready, frames)
        end = None
        if self.ended and self.ready <= frames:
            end = self.features
        length = frames * self.encoder.factor
        rows = self.rows[:length]
        self.rows = self.rows[len(rows) :]
        self.position += count
        return F.pad(rows, (0, 0, 0, length - len(rows))), end, count


class Stream:
    """One live stream, made by ``Recognizer.stream``.  Leaving its ``with`` block finishes it.

    Tokens are final as soon as they are emitted; decoding never takes one back.
    """

    def __init__(self, model: Model, options: StreamOptions = STREAM_DEFAULTS) -> None:
        self.model = model
        self.chunk = model.encoder.chunk
        self.block = max(self.chunk, LIVE_FRAMES // self.chunk * self.chunk)
        """Maximum encoder frames in one step."""
        self.features = FeatureStream(model.frontend)
        self.rows = RowBuffer(model)
        self.encoder_state = self._new_encoder_state()
        self.decoder_state = model.decoder.new_state(1)
        self.emissions: list[Emission] = []
        self.pause = options.reset_after_pause_ms / 1000 or float("inf")
        """Seconds without a token after which the decoder's state is reset."""
        self.tokens_at_reset = 0
        self.error: Exception | None = None
        """The error that ended the stream: values that are not finite, in a pool any error of the model; or None."""
        self.utterances = Utterances(model.speller, options.endpoint_ms)
        self.settled = 0
        """Tokens whose words are in ``settled_text``: a long stream is not spelled from its start each time."""
        self.settled_text = ""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish()

    def feed(self, samples: Samples) -> list[Word]:
        """Transcribe the next samples, mono, 16 kHz, as far as they fill whole chunks; return the words that are final.

        ``samples``: float32 in -1 .. 1 or int16, any number of them, [samples] or [samples, 1], of numpy or torch.
        Raises TypeError for anything else, ValueError after the end, and ModelError if the model's values are not
        finite.  That ends the stream, and ``transcript`` returns the words before.
        """
        if self.rows.ended or self.error:
            raise ValueError("the stream has ended: start a new one")
        self.rows.add(self.features.feed(torch.from_numpy(to_samples(samples))))
        self._advance()
        return self._follow()

    def _new_encoder_state(self) -> EncoderState:
        return self.model.encoder.new_state(1, self.block)

    def _advance(self) -> None:
        """Transcribe the chunks that are complete."""
        while self.rows.ready >= self.chunk:
            chunks = self.rows.ready // self.chunk
            self._step(min(chunks * self.chunk, self.block))

    def finish(self) -> Transcript:
        """End the audio, transcribe the rest, and return the final transcript."""
        if not self.error:
            self.end_rows()
        return self.transcript()

    def end_rows(self) -> None:
        """End the audio, and transcribe all that waits."""
        if not self.rows.ended:
            self._end()
        while self.rows.ready:
            self._step(self.chunk)

    def events(self) -> list[LiveEvent]:
        """Return the events since the last call: words that became final, and utterances that ended."""
        self._follow()
        events = list(self.utterances.events)
        self.utterances.events.clear()
        return events

    def preview(self) -> list[Word]:
        """Return the words that would follow the final ones if the audio ended here.

        They are decoded on a copy of the stream's state, so the stream itself is not affected.
        """
        other = copy.copy(self)
        other.features = copy.copy(self.features)
        other.rows = copy.copy(self.rows)
        other.encoder_state = self.model.encoder.new_state(1, self.block)
        other.encoder_state.take(self.encoder_state, [0])
        other.decoder_state = DecoderState.join([self.decoder_state])
        other.emissions = list(self.emissions)
        other.end_rows()
        return other.utterances.unfinished(other.emissions, other.seconds)

    def _end(self) -> None:
        """Add the last features."""
        self.rows.add(self.features.finish())
        self.rows.ended = True

    def _follow(self) -> list[Word]:
        """Return the words that are final since the last call."""
        seconds = self.seconds if self.is_done else self.decoded_seconds
        return self.utterances.update(self.emissions, seconds, ended=self.is_done)

    @property
    def is_done(self) -> bool:
        """Whether the stream has failed, or has ended and all of it is transcribed."""
        return bool(self.error) or (self.rows.ended and not self.rows.ready)

    def transcript(self) -> Transcript:
        """Return the transcript so far."""
        return self.model.transcript(self.emissions, self.features.samples)

    @property
    def text(self) -> str:
        """The text so far."""
        speller = self.model.speller
        tokens = self.emissions[self.settled :]
        if len(tokens) > SETTLE_TOKENS:
            starts = [i for i, token in enumerate(tokens) if speller.pieces[token.id].startswith(WORD_START)]
            if starts and starts[-1]:
                self.settled_text = self._join(speller.text([token.id for token in tokens[: starts[-1]]]))
                self.settled += starts[-1]
                tokens = tokens[starts[-1] :]
        return self._join(speller.text([token.id for token in tokens]))

    def _join(self, text: str) -> str:
        """Append ``text`` to the settled text."""
        if not self.settled:
            return text
        return self.settled_text + self.model.speller.tidy(f" {text}")

    @property
    def words(self) -> tuple[Word, ...]:
        """The words so far, with their times; the last one may still grow."""
        return self.transcript().words

    @property
    def unfinished(self) -> list[Word]:
        """The words after those that are final; the last one may still grow."""
        return self.utterances.unfinished(self.emissions, self.decoded_seconds)

    @property
    def utterance(self) -> str:
        """The text of the current utterance so far; empty after its end."""
        return self.utterances.text(self.emissions, self.decoded_seconds)

    @property
    def decoded_seconds(self) -> float:
        """Seconds of audio that are transcribed."""
        return self.decoder_state.position[0] * self.model.frame_seconds

    @property
    def seconds(self) -> float:
        """Seconds of audio fed so far."""
        return self.features.samples / SAMPLE_RATE

    def reset_after_pause(self) -> None:
        """Reset the decoder to the start of a recording if the options request it after such a pause."""
        if len(self.emissions) == self.tokens_at_reset:  # nothing was said since
            return
        silent = self.decoded_seconds - self.emissions[-1].frame * self.model.frame_seconds
        if silent >= self.pause:
            position = self.decoder_state.position[0]
            self.decoder_state = self.model.decoder.new_state(1)
            self.decoder_state.position[0] = position
            self.tokens_at_reset = len(self.emissions)

    def _step(self, frames: int) -> None:
        """Transcribe the next frames.  If memory runs out, leave them for smaller steps, down to one chunk."""
        self.reset_after_pause()
        kept = []
        if frames > self.chunk:  # a live stream that keeps up steps chunk by chunk and needs no copies
            kept = [row.clone() for row in self.encoder_state.kept_rows]
        before = copy.copy(self.rows)
        rows, end, count = self.rows.take(frames)
        encoded = None
        try:
            step = Step(upload(rows[None], self.model.device), self.encoder_state, [end])
            encoded = self.model.encoder.step(*step)
        except Exception as error:
            if frames <= self.chunk or not is_out_of_memory(error):
                raise
        if encoded is None:  # here the error is gone, and with it the device memory that its traceback holds
            self.rows = before
            self._shrink(frames, kept)
        else:
            try:
                self.emissions += self.model.decode(encoded, self.decoder_state, [count], step)[0]
            except ModelError as failure:
                self.error = failure
                raise

    def _shrink(self, frames: int, kept: list[torch.Tensor]) -> None:
        """Restore the encoder state from before a step of ``frames`` frames, and halve the steps."""
        for row, copied in zip(self.encoder_state.kept_rows, kept, strict=True):
            row.copy_(copied)
        self.block = max(frames // 2 // self.chunk, 1) * self.chunk
        model = self.model
        release_memory(model.device)
        milliseconds = self.block * model.frame_seconds * 1000
        model.announce(one_line(str(model.device), "out of memory", f"continuing with blocks of {milliseconds:.0f} ms"))
