"""Encoder frames -> tokens: greedy RNN-T decoding of a batch of slots, with state carried from block to block.

The joint network is evaluated for several frames at once with the prediction network's current output: as long as
they are blank that output stays the same, so a run of blank frames costs one small matrix product and one look at its
result, and each emitted token one more.  The tokens are those of NeMo's frame by frame search
(``rnnt_greedy_decoding.py``); phrases are boosted as its label-looping search does (``rnnt_label_looping.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from .boosting import BoostingTree
from .checkpoint.weights import Weights
from .confidence import confidence, statistic
from .device import traits_of
from .errors import SetupError, Unsupported
from .linear import Linear, make_linear

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
LOOKAHEAD = 8  # frames whose joint is evaluated at once: static shapes, few looks, little waste when a token is emitted
MOST_SYMBOLS = 100  # tokens of a frame of 80 ms where the checkpoint sets no limit: broken weights would never end


@dataclass(frozen=True, slots=True)  # a stream of hours keeps many
class Emission:
    """One token as it leaves the search."""

    id: int
    frame: int
    """Encoder frame, counted from the start of the recording."""
    probability: float
    """Of this token among all, blank included."""
    confidence: float
    """0 .. 1, by ``Decoder.confidence``."""


class NotFinite(Exception):
    """The encoder's output or the logits of a frame that the search has come to are NaN or infinite."""

    def __init__(self, slot: int, frame: int):
        super().__init__(f"frame {frame} of slot {slot} is not finite")
        self.slot, self.frame = slot, frame
        """The frame is counted from the start of the recording."""


class DecoderState:
    """What the search remembers of the recordings in its slots; made by ``Decoder.new_state``."""

    def __init__(
        self,
        hidden: list[torch.Tensor],
        cell: list[torch.Tensor],
        predicted: torch.Tensor,
        boosting: BoostingTree | None = None,
    ):
        self.hidden, self.cell = hidden, cell
        """LSTM state of each layer, [slots, hidden]."""
        self.predicted = predicted
        """Output of the prediction network after the last token, projected for the joint: [slots, joint]."""
        self.position = [0] * len(predicted)
        """Encoder frames of each slot's recording so far."""
        self.boosting = boosting
        """The phrases to prefer; a state keeps those that it began with."""
        self.boosted = [boosting and boosting.root] * len(predicted)
        """Where each slot is in the tree."""

    @torch.inference_mode()
    def take(self, other: DecoderState, slots: list[int]) -> None:
        """Go on with the recordings that are in these slots of another state, one in each slot of this one."""
        self.hidden = [torch.stack([rows[slot] for slot in slots]) for rows in other.hidden]
        self.cell = [torch.stack([rows[slot] for slot in slots]) for rows in other.cell]
        self.predicted = torch.stack([other.predicted[slot] for slot in slots])
        self.position = [other.position[slot] for slot in slots]
        self.boosting = other.boosting
        self.boosted = [other.boosted[slot] for slot in slots]


class Decoder:
    """Prediction network, joint network and greedy search of one checkpoint on one device.

    Parameters
    ----------
    config : the checkpoint's whole config; ``decoder``, ``joint`` and ``decoding`` are read.
    weights : the checkpoint's tensors, for the device.
    dtype : of the matrix products, see ``linear.make_linear``; the logits are always float32.

    Raises Unsupported for a transducer that is not an LSTM with greedy search.
    """

    def __init__(self, config: dict, weights: Weights, dtype: str = "float32"):
        _check(config)
        prediction = weights.inside("decoder.prediction.")
        self.width = config["decoder"]["prednet"]["pred_hidden"]
        embedding = prediction("embed.weight", None, self.width)
        self.layers = [
            _lstm_layer(prediction.inside("dec_rnn.lstm."), layer, self.width, dtype)
            for layer in range(config["decoder"]["prednet"]["pred_rnn_layers"])
        ]
        joint = weights.inside("joint.")
        inner, encoded = config["joint"]["jointnet"]["joint_hidden"], config["encoder"].get("feat_out", -1)
        encoded = encoded if encoded > 0 else config["encoder"]["d_model"]
        output = 2 if config["joint"]["jointnet"].get("dropout") else 1  # behind activation and dropout
        self.encoder_projection = make_linear(joint("enc.weight", inner, encoded), joint("enc.bias", inner), dtype)
        self.prediction_projection = make_linear(
            joint("pred.weight", inner, self.width), joint("pred.bias", inner), dtype
        )
        self.output = joint(f"joint_net.{output}.weight", None, inner).t(), joint(f"joint_net.{output}.bias", None)
        self.activation = ACTIVATIONS[config["joint"]["jointnet"]["activation"].lower()]
        self.blank = self.output[1].shape[0] - 1
        if len(embedding) not in (self.blank, self.blank + 1) or len(self.output[1]) != self.output[0].shape[1]:
            raise SetupError("model_weights.ckpt inside is of two vocabularies: decoder.prediction and joint differ")
        if len(embedding) == self.blank:  # no blank_as_pad: the start symbol is a zero vector
            embedding = torch.cat([embedding, embedding.new_zeros(1, embedding.shape[1])])
        # what the first layer makes of each symbol is known beforehand: one row is read instead of a matrix
        self.symbols = self.layers[0][0](embedding)
        self.layers[0] = self.symbols.__getitem__, self.layers[0][1]
        greedy = (config.get("decoding") or {}).get("greedy") or {}
        self.max_symbols = greedy.get("max_symbols") or greedy.get("max_symbols_per_step") or MOST_SYMBOLS
        """Tokens that one frame may emit."""
        self.device = weights.device
        self.confidence = "max_prob"
        """Measure of the tokens' confidence: one of ``confidence.METHODS``."""
        self.boosting: BoostingTree | None = None
        """Phrases to prefer, for states that are made from now on."""

    @cached_property
    @torch.inference_mode()
    def _start(self) -> DecoderState:
        """One slot at the start of a recording: the prediction network has seen the start symbol (blank)."""
        zeros = [self.symbols.new_zeros(1, self.width) for _ in self.layers]
        state = DecoderState(zeros, list(zeros), self.symbols.new_zeros(1, self.output[0].shape[0]), None)
        self.advance(state, torch.tensor([self.blank], device=self.device))
        return state

    @torch.inference_mode()
    def new_state(self, slots: int) -> DecoderState:
        """Slots at the start of their recordings."""
        start = self._start
        hidden, cell = ([rows.repeat(slots, 1) for rows in kind] for kind in (start.hidden, start.cell))
        return DecoderState(hidden, cell, start.predicted.repeat(slots, 1), self.boosting)

    @torch.inference_mode()
    def restart(self, state: DecoderState, slot: int) -> None:
        """Begin a new recording in ``slot``."""
        if not state.position[slot]:  # it is as it was made
            return
        for layer in range(len(self.layers)):
            state.hidden[layer][slot] = self._start.hidden[layer][0]
            state.cell[layer][slot] = self._start.cell[layer][0]
        state.predicted[slot] = self._start.predicted[0]
        state.position[slot] = 0
        state.boosted[slot] = state.boosting and state.boosting.root

    @torch.inference_mode()
    def step(self, frames: torch.Tensor, state: DecoderState, counts: list[int]) -> list[list[Emission]]:
        """Search the next frames of every slot.

        Parameters
        ----------
        frames : float32 [slots, n, width], encoder output on the decoder's device.
        state : is moved on.
        counts : how many of the n frames belong to each slot's recording; 0 for an idle slot.

        Returns
        -------
        The tokens that each slot emitted, in order.

        Raises NotFinite.  No look at a device is made for it: logits tell it by their probabilities, which come to the
        host anyway, and so does the encoder's output, unless an activation hides an infinity.
        """
        slots, most, _ = frames.shape
        if traits_of(frames.device).is_host and not math.isfinite(frames.sum()):
            self._check(frames, state, counts)
        projected = self.encoder_projection(frames.reshape(slots * most, -1)).view(slots, most, -1)
        projected = F.pad(projected, (0, 0, 0, LOOKAHEAD))
        window = torch.arange(LOOKAHEAD, device=self.device)
        slot_index = torch.arange(slots, device=self.device)[:, None]
        emitted: list[list[Emission]] = [[] for _ in range(slots)]
        now, symbols = [0] * slots, [0] * slots  # frame in this block, tokens that it has emitted
        while any(frame < count for frame, count in zip(now, counts, strict=True)):
            if slots == 1:
                ahead = projected[0, now[0] : now[0] + LOOKAHEAD]
            else:
                at = torch.tensor(now, device=self.device)[:, None] + window
                ahead = projected[slot_index, at].view(slots * LOOKAHEAD, -1)
            predicted = state.predicted.repeat_interleave(LOOKAHEAD, 0) if slots > 1 else state.predicted
            logits = torch.addmm(self.output[1], self.activation(ahead + predicted), self.output[0])
            logits = logits.view(slots, LOOKAHEAD, -1)
            found = self._choose(logits, state).tolist()  # one look at the result for all slots
            chosen = [self.blank] * slots
            for slot in range(slots):
                left = counts[slot] - now[slot]
                if left <= 0:
                    continue
                reach = min(left, LOOKAHEAD)
                if not math.isfinite(sum(found[1][slot][:reach])):
                    bad = next(i for i in range(reach) if not math.isfinite(found[1][slot][i]))
                    raise NotFinite(slot, state.position[slot] + now[slot] + bad)
                offset = next((i for i in range(reach) if int(found[0][slot][i]) != self.blank), reach)
                if offset:
                    now[slot] += offset
                    symbols[slot] = 0
                if offset == reach:
                    continue
                chosen[slot] = int(found[0][slot][offset])
                if state.boosting:
                    state.boosted[slot] = state.boosting.advance(state.boosted[slot], chosen[slot])
                probability, sure = found[1][slot][offset], found[2][slot][offset]
                sure = confidence(sure, self.confidence, self.blank + 1)
                emitted[slot].append(Emission(chosen[slot], state.position[slot] + now[slot], probability, sure))
                symbols[slot] += 1
                if symbols[slot] == self.max_symbols:
                    now[slot] += 1
                    symbols[slot] = 0
            if any(token != self.blank for token in chosen):
                self.advance(state, torch.tensor(chosen, device=self.device), chosen)
        for slot, count in enumerate(counts):
            state.position[slot] += count
        return emitted

    def _check(self, frames: torch.Tensor, state: DecoderState, counts: list[int]) -> None:
        """Raise NotFinite for the first frame of a recording that is not; those behind its end mean nothing."""
        finite = frames.isfinite().all(-1)
        for slot, count in enumerate(counts):
            if not finite[slot, :count].all():
                raise NotFinite(slot, state.position[slot] + int(finite[slot, :count].int().argmin()))

    def _choose(self, logits: torch.Tensor, state: DecoderState) -> torch.Tensor:
        """The best token of each frame, its probability, and the statistic that its confidence comes from.

        logits [slots, n, vocabulary] -> float32 [3, slots, n].  Whether a token is emitted is the model's own decision,
        which one it is the boosted scores'; the confidence is that of the model.
        """
        best, tokens = logits.max(-1)
        total = logits.logsumexp(-1)
        probability = (best - total).exp()
        sure = probability if self.confidence == "max_prob" else statistic(logits - total[..., None], self.confidence)
        if state.boosting:
            scores = torch.stack([state.boosting.scores(node) for node in state.boosted])
            preferred = (logits[..., :-1] + scores[:, None]).argmax(-1)  # blank is the last
            tokens = torch.where(tokens == self.blank, tokens, preferred)
            probability = (logits.gather(-1, tokens[..., None]).squeeze(-1) - total).exp()
        return torch.stack([tokens.to(logits.dtype), probability, sure])

    def advance(self, state: DecoderState, tokens: torch.Tensor, chosen: list[int] | None = None) -> None:
        """Show the prediction network the ``tokens``, int64 [slots].  Slots that chose blank stay as they are."""
        stay = None
        if chosen and self.blank in chosen:
            stay = (tokens == self.blank)[:, None]
        x = tokens
        for layer, (from_input, recurrent) in enumerate(self.layers):
            x, cell = _lstm(recurrent.add(from_input(x), state.hidden[layer]), state.cell[layer])
            hidden = x
            if stay is not None:
                hidden = torch.where(stay, state.hidden[layer], hidden)
                cell = torch.where(stay, state.cell[layer], cell)
            state.hidden[layer], state.cell[layer] = hidden, cell
        predicted = self.prediction_projection(x)
        state.predicted = predicted if stay is None else torch.where(stay, state.predicted, predicted)


def _lstm_layer(weights: Weights, layer: int, width: int, dtype: str) -> tuple[Linear, Linear]:
    """The products of the input, with both biases, and of the hidden state: [slots, in] -> [slots, 4 * hidden]."""
    shape = 4 * width, width
    bias = weights(f"bias_ih_l{layer}", 4 * width) + weights(f"bias_hh_l{layer}", 4 * width)
    from_input = make_linear(weights(f"weight_ih_l{layer}", *shape), bias, dtype if layer else "float32")
    return from_input, make_linear(weights(f"weight_hh_l{layer}", *shape), None, dtype)


def _lstm(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.nn.LSTM's step, of operators that every device has: (hidden, cell), each [slots, hidden]."""
    admit, forget, new, show = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + admit.sigmoid() * new.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _check(config: dict) -> None:
    """Raise Unsupported, naming the first part that this decoder does not know."""
    decoder, joint, decoding = config["decoder"], config["joint"], config.get("decoding") or {}
    for part, kind in ((decoder, "RNNTDecoder"), (joint, "RNNTJoint")):
        target = str(part.get("_target_", kind)).rsplit(".", 1)[-1]
        if target != kind:
            raise Unsupported(f"a {target}")
    if decoder.get("normalization_mode"):
        raise Unsupported(f"decoder.normalization_mode: {decoder['normalization_mode']}")
    if decoder["prednet"].get("rnn_hidden_size", -1) > 0:
        raise Unsupported("an LSTM with projections (decoder.prednet.rnn_hidden_size)")
    if joint.get("num_extra_outputs"):
        raise Unsupported("a joint network with extra outputs (TDT durations)")
    activation = str(joint["jointnet"]["activation"]).lower()
    if activation not in ACTIVATIONS:
        raise Unsupported(f"joint.jointnet.activation: {activation}")
    strategy = decoding.get("strategy", "greedy_batch")
    if strategy not in ("greedy", "greedy_batch"):
        raise Unsupported(f"decoding.strategy: {strategy}")
