"""Encoder frames -> tokens: greedy RNN-T decoding of a batch of slots, with state carried from block to block.

The joint network is evaluated for several frames at once, with the current output of the prediction network.  This
output does not change while frames are blank.  So a run of blank frames costs one small matrix product and one
synchronization, and each emitted token costs one more.  The tokens are those of NeMo's frame by frame decoding
(``rnnt_greedy_decoding.py``); phrases are boosted as in its label-looping decoding (``rnnt_label_looping.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F

from .boosting import BoostingTree, Node
from .checkpoint.config import ModelConfig
from .checkpoint.weights import Weights
from .confidence import confidence, statistic
from .device import traits_of
from .errors import SetupError, Unsupported, shown
from .linear import make_linear

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
LOOKAHEAD = 8  # frames whose joint is evaluated together: static shapes, few synchronizations, little waste


@dataclass(frozen=True, slots=True)  # a stream of hours keeps many
class Emission:
    """One decoded token."""

    id: int
    frame: int
    """Encoder frame, counted from the start of the recording."""
    probability: float
    """Of this token among all, including blank."""
    confidence: float
    """0 .. 1, by ``Decoder.confidence``."""


class NotFinite(Exception):
    """The encoder's output or the logits of a decoded frame are NaN or infinite."""

    def __init__(self, slot: int, frame: int) -> None:
        super().__init__(f"frame {frame} of slot {slot} is not finite")
        self.slot = slot
        self.frame = frame
        """The frame is counted from the start of the recording."""


@dataclass
class _Cursor:
    """The progress of one slot in a block."""

    count: int
    """Frames of the block that belong to the slot's recording."""
    frame: int = 0
    """Next frame of the block."""
    symbols: int = 0
    """Tokens that this frame has emitted."""
    emitted: list[Emission] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Frames that are not decoded yet."""
        return self.count - self.frame

    def skip(self, frames: int) -> None:
        """Move past blank frames."""
        if frames:
            self.frame += frames
            self.symbols = 0

    def emit(self, emission: Emission, max_symbols: int) -> None:
        """Add a token of the current frame, and move on when the frame has emitted ``max_symbols``."""
        self.emitted.append(emission)
        self.symbols += 1
        if self.symbols == max_symbols:
            self.skip(1)


class DecoderState:
    """The decoder's state of the recordings in its batch slots; made by ``Decoder.new_state``."""

    def __init__(
        self,
        products: list[torch.Tensor],
        cell: list[torch.Tensor],
        boosting: BoostingTree | None = None,
    ) -> None:
        self.products = products
        """Of each LSTM layer's last output, see ``Decoder.products``."""
        self.cell = cell
        """LSTM cell of each layer, [slots, hidden]."""
        slots = len(cell[0])
        self.position = [0] * slots
        """Encoder frames of each slot's recording so far."""
        self.boosting = boosting
        """Phrases to prefer; a state keeps those that it was made with."""
        self.boosted: list[Node] = [boosting.root] * slots if boosting else []
        """Each slot's node of the tree; empty without phrases."""

    @property
    def predicted(self) -> torch.Tensor:
        """Output of the prediction network after the last token, projected for the joint: [slots, joint]."""
        return self.products[-1][:, 4 * self.cell[-1].shape[1] :]

    @classmethod
    @torch.inference_mode()
    def join(cls, states: list[DecoderState]) -> DecoderState:
        """Return the recordings of several states in the slots of one; their boosting must be the same."""
        layers = range(len(states[0].cell))
        products = [torch.cat([state.products[layer] for state in states]) for layer in layers]
        cell = [torch.cat([state.cell[layer] for state in states]) for layer in layers]
        joined = cls(products, cell, states[0].boosting)
        joined.position = [position for state in states for position in state.position]
        joined.boosted = [node for state in states for node in state.boosted]
        return joined

    def part(self, slot: int) -> DecoderState:
        """Return the recording in one slot as a state of its own."""
        rows = slice(slot, slot + 1)
        products, cell = ([tensor[rows] for tensor in tensors] for tensors in (self.products, self.cell))
        state = DecoderState(products, cell, self.boosting)
        state.position, state.boosted = self.position[rows], self.boosted[rows]
        return state

    @torch.inference_mode()
    def take(self, other: DecoderState, slots: list[int]) -> None:
        """Copy the recordings in these slots of another state, one into each slot of this one."""
        self.products = [torch.stack([rows[slot] for slot in slots]) for rows in other.products]
        self.cell = [torch.stack([rows[slot] for slot in slots]) for rows in other.cell]
        self.position = [other.position[slot] for slot in slots]
        self.boosting = other.boosting
        self.boosted = [other.boosted[slot] for slot in slots] if other.boosting else []


class Decoder:
    """Prediction network, joint network and greedy decoding of one checkpoint on one device.

    ``config`` is the checkpoint's whole config, of which ``decoder``, ``joint`` and ``decoding`` are read; ``weights``
    are its tensors, for the device; ``dtype`` is that of the matrix products, see ``linear.make_linear``.  The logits
    are always float32.
    Raises Unsupported for a transducer whose prediction network is not an LSTM, and SetupError as ``Weights`` does.
    """

    def __init__(self, config: ModelConfig, weights: Weights, dtype: str = "float32") -> None:
        _check(config)
        prediction = weights.inside("decoder.prediction.")
        self.width = config.decoder.prednet.pred_hidden
        layers = config.decoder.prednet.pred_rnn_layers
        embedding = prediction("embed.weight", None, self.width)
        joint = weights.inside("joint.")
        inner = config.joint.jointnet.joint_hidden
        encoded = config.encoder.output_width
        output = 2 if config.joint.jointnet.dropout else 1  # its index, after activation and dropout
        self.encoder_projection = make_linear(joint("enc.weight", inner, encoded), joint("enc.bias", inner), dtype)
        projection = joint("pred.weight", inner, self.width), joint("pred.bias", inner)
        weight, bias = joint(f"joint_net.{output}.weight", None, inner), joint(f"joint_net.{output}.bias", None)
        self.output = make_linear(weight, bias, "plain" if dtype == "plain" else "float32")
        self.activation = ACTIVATIONS[config.joint.jointnet.activation.lower()]
        self.blank = len(bias) - 1
        if len(embedding) not in (self.blank, self.blank + 1) or len(bias) != len(weight):
            raise SetupError("model_weights.ckpt", "decoder.prediction and joint have different vocabularies")
        if len(embedding) == self.blank:  # no blank_as_pad: the start symbol is a zero vector
            embedding = torch.cat([embedding, embedding.new_zeros(1, embedding.shape[1])])
        lstm = prediction.inside("dec_rnn.lstm.")
        first, *others = (_input_weights(lstm, layer, self.width) for layer in range(layers))
        self.symbols = make_linear(*first, "float32")(embedding)
        """The first layer's product of each symbol, computed once: a step reads one row instead of a matrix."""
        self.products = [
            make_linear(*_joined(lstm(f"weight_hh_l{layer}", 4 * self.width, self.width), *following), dtype)
            for layer, following in enumerate([*others, projection])
        ]
        """Of each layer's output, [slots, hidden] -> [slots, 4 * hidden + next].

        First its gates at the next token, then the next layer's gates, or what the joint adds: all that follows from
        this output is one product.
        """
        self.max_symbols = config.decoding.max_symbols
        """Tokens that one frame may emit."""
        self.device = weights.device
        self.confidence = "max_prob"
        """Method of the tokens' confidence: one of ``confidence.METHODS``."""
        self.boosting: BoostingTree | None = None
        """Phrases to prefer, for states that are made from now on."""

    @cached_property
    @torch.inference_mode()
    def _start(self) -> DecoderState:
        """One slot at the start of a recording: the prediction network has the start symbol (blank) as input."""
        state = self.zero_state()
        self.advance(state, torch.tensor([self.blank], device=self.device))
        return state

    def zero_state(self) -> DecoderState:
        """Return one slot whose prediction network has had no input."""
        products = [self.symbols.new_zeros(1, product.elements // self.width) for product in self.products]
        return DecoderState(products, [self.symbols.new_zeros(1, self.width) for _ in products])

    @torch.inference_mode()
    def new_state(self, slots: int) -> DecoderState:
        """Return slots at the start of their recordings."""
        start = self._start
        products = [rows.repeat(slots, 1) for rows in start.products]
        cell = [rows.repeat(slots, 1) for rows in start.cell]
        return DecoderState(products, cell, self.boosting)

    @torch.inference_mode()
    def restart(self, state: DecoderState, slot: int) -> None:
        """Start a new recording in ``slot``."""
        if not state.position[slot]:  # nothing was decoded yet
            return
        for layer in range(len(self.products)):
            state.products[layer][slot] = self._start.products[layer][0]
            state.cell[layer][slot] = self._start.cell[layer][0]
        state.position[slot] = 0
        if state.boosting:
            state.boosted[slot] = state.boosting.root

    @torch.inference_mode()
    def step(self, frames: torch.Tensor, state: DecoderState, counts: list[int]) -> list[list[Emission]]:
        """Decode the next frames of every slot, and advance ``state``.

        ``frames`` is float32 [slots, n, width], encoder output on the decoder's device; ``counts`` tells how many of
        the n frames belong to each slot's recording, 0 for an idle slot.
        Returns the tokens that each slot emitted, in order.

        Raises NotFinite.  On a device this check costs no synchronization: the probabilities, which are copied to the
        host anyway, show it, unless an activation hides an infinity of the encoder's output.
        """
        slots, length, _ = frames.shape
        on_host = traits_of(frames.device).is_host
        if on_host and not math.isfinite(frames.sum()):
            self._check(frames, state, counts)
        projected = self.encoder_projection(frames.reshape(slots * length, -1)).view(slots, length, -1)
        projected = F.pad(projected, (0, 0, 0, LOOKAHEAD))
        window = torch.arange(LOOKAHEAD, device=self.device)
        slot_index = torch.arange(slots, device=self.device)[:, None]
        cursors = [_Cursor(count) for count in counts]
        while any(cursor.left > 0 for cursor in cursors):
            if slots == 1:
                rows = min(LOOKAHEAD, cursors[0].left) if on_host else LOOKAHEAD  # a device wants static shapes
                ahead = projected[0, cursors[0].frame : cursors[0].frame + rows]
                predicted = state.predicted
            else:
                at = torch.tensor([cursor.frame for cursor in cursors], device=self.device)[:, None] + window
                ahead = projected[slot_index, at].view(slots * LOOKAHEAD, -1)
                predicted = state.predicted.repeat_interleave(LOOKAHEAD, 0)
            logits = self.output(self.activation(ahead + predicted))
            found = self._choose(logits.view(slots, -1, self.blank + 1), state).tolist()  # the only synchronization
            chosen = [self._emit(slot, cursors[slot], [rows[slot] for rows in found], state) for slot in range(slots)]
            if any(token != self.blank for token in chosen):
                self.advance(state, torch.tensor(chosen, device=self.device), chosen)
        for slot, count in enumerate(counts):
            state.position[slot] += count
        return [cursor.emitted for cursor in cursors]

    def _emit(self, slot: int, cursor: _Cursor, found: list[list[float]], state: DecoderState) -> int:
        """Move a slot's cursor to its next token, or past the frames that were evaluated.

        ``found`` holds the token, probability and statistic of each of these frames, from ``_choose``.
        Returns the token; blank if there is none.  Raises NotFinite.
        """
        if cursor.left <= 0:
            return self.blank
        tokens, probabilities, statistics = found
        reach = min(cursor.left, LOOKAHEAD)
        if not math.isfinite(sum(probabilities[:reach])):
            bad = next(i for i in range(reach) if not math.isfinite(probabilities[i]))
            raise NotFinite(slot, state.position[slot] + cursor.frame + bad)
        offset = next((i for i in range(reach) if int(tokens[i]) != self.blank), reach)
        cursor.skip(offset)
        if offset == reach:
            return self.blank
        token = int(tokens[offset])
        tree = state.boosting
        if tree:
            state.boosted[slot] = tree.advance(state.boosted[slot], token)
        certainty = confidence(statistics[offset], self.confidence, self.blank + 1)
        frame = state.position[slot] + cursor.frame
        cursor.emit(Emission(token, frame, probabilities[offset], certainty), self.max_symbols)
        return token

    def _check(self, frames: torch.Tensor, state: DecoderState, counts: list[int]) -> None:
        """Raise NotFinite for the first such frame of a recording; frames past its end are undefined."""
        finite = frames.isfinite().all(-1)
        for slot, count in enumerate(counts):
            if not finite[slot, :count].all():
                raise NotFinite(slot, state.position[slot] + int(finite[slot, :count].int().argmin()))

    def _choose(self, logits: torch.Tensor, state: DecoderState) -> torch.Tensor:
        """Choose the best token of each frame, with its probability and the statistic of its confidence.

        logits [slots, n, vocabulary] -> float32 [3, slots, n].  The model alone decides whether a token is emitted, the
        boosted scores decide which; the confidence is the model's own.
        """
        tokens = logits.max(-1).indices
        probabilities = logits.softmax(-1)
        probability = certainty = probabilities.amax(-1)
        if self.confidence != "max_prob":
            certainty = statistic(logits.log_softmax(-1), self.confidence)
        if state.boosting:
            scores = torch.stack([state.boosting.scores(node) for node in state.boosted])
            preferred = (logits[..., :-1] + scores[:, None]).argmax(-1)  # blank is the last
            tokens = torch.where(tokens == self.blank, tokens, preferred)
            probability = probabilities.gather(-1, tokens[..., None]).squeeze(-1)
        return torch.stack([tokens.to(logits.dtype), probability, certainty])

    def advance(self, state: DecoderState, tokens: torch.Tensor, chosen: list[int] | None = None) -> torch.Tensor:
        """Feed ``tokens``, int64 [slots], to the prediction network; return its output, [slots, hidden].

        ``chosen`` are the same on the host: slots that chose blank keep their state.  None means that none did.
        """
        stay = None
        if chosen and self.blank in chosen:
            stay = (tokens == self.blank)[:, None]
        gates = self.symbols[tokens]
        for layer, product in enumerate(self.products):
            last = state.products[layer]
            hidden, cell = _lstm(gates + last[:, : 4 * self.width], state.cell[layer])
            y = product(hidden)
            gates = y[:, 4 * self.width :]
            state.products[layer] = y if stay is None else torch.where(stay, last, y)
            state.cell[layer] = cell if stay is None else torch.where(stay, state.cell[layer], cell)
        return hidden


def _input_weights(weights: Weights, layer: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight of an LSTM layer's input, [4 * hidden, in], and the sum of its two biases."""
    bias = weights(f"bias_ih_l{layer}", 4 * width) + weights(f"bias_hh_l{layer}", 4 * width)
    return weights(f"weight_ih_l{layer}", 4 * width, width), bias


def _joined(recurrent: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of the product that both follow from: a recurrent weight has no bias of its own."""
    return torch.cat([recurrent, weight]), torch.cat([bias.new_zeros(len(recurrent)), bias])


def _lstm(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute torch.nn.LSTM's step with operators of every device: (hidden, cell), each [slots, hidden]."""
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, 1)
    cell = torch.addcmul(forget_gate.sigmoid() * cell, input_gate.sigmoid(), candidate.tanh())
    return output_gate.sigmoid() * cell.tanh(), cell


def _check(config: ModelConfig) -> None:
    """Raise Unsupported, which names the first unsupported part."""
    for target, supported in ((config.decoder.target, "RNNTDecoder"), (config.joint.target, "RNNTJoint")):
        name = target.rsplit(".", 1)[-1]
        if name != supported:
            raise Unsupported(f"a {name}")
    joint, decoder = config.joint, config.decoder
    unknown = (*decoder.unknown, *decoder.prednet.unknown, *joint.unknown, *joint.jointnet.unknown)
    if unknown:
        raise Unsupported(unknown[0])
    if config.decoder.normalization_mode:
        raise Unsupported(f"decoder.normalization_mode: {config.decoder.normalization_mode}")
    if (config.decoder.prednet.rnn_hidden_size or -1) > 0:
        raise Unsupported("an LSTM with projections (decoder.prednet.rnn_hidden_size)")
    if config.joint.num_extra_outputs:
        raise Unsupported("a joint network with extra outputs (TDT durations)")
    if config.decoding.big_blank_durations:
        raise Unsupported(f"decoding.big_blank_durations: {shown(config.decoding.big_blank_durations)}")
    if config.decoding.boosts:
        raise Unsupported("phrases that decoding.greedy.boosting_tree prefers")
    activation = config.joint.jointnet.activation.lower()
    if activation not in ACTIVATIONS:
        raise Unsupported(f"joint.jointnet.activation: {activation}")
