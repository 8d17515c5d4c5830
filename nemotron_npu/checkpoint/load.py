"""A ``.nemo`` file -> its config, weights and tokenizers, checked without either engine and without importing NeMo."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sentencepiece import SentencePieceProcessor

from ..errors import SetupError
from .archive import is_ported, is_saved
from .config import HYBRID_CLASS, EncoderConfig, ModelConfig, PredictionConfig
from .config_reader import read_config
from .identity import read_identity
from .saved import read_saved_weights
from .tokenizer import check_vocabulary, read_tokenizers
from .transformers_weights import read_ported_weights
from .weights import Tensors, read_weights

CTC_DECODER = "ctc_decoder."


class Checkpoint(NamedTuple):
    """What is in a ``.nemo`` file; ``tokenizers`` has one, or one for each language; ``identity`` names the model."""

    config: ModelConfig
    tensors: Tensors
    tokenizers: list[SentencePieceProcessor]
    identity: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Return everything in a ``.nemo`` file, checked: it runs no code and takes no more memory than the file has.

    So it does for a folder of transformers, and for a file that ``--save`` has written.
    Both engines read a checkpoint by this.  ``Weights`` checks the shape and the values of each weight at its use.
    Raises SetupError that names the member and what is wrong with it.
    """
    config = read_config(path)
    tokenizers = read_tokenizers(path, config)
    tensors = read_tensors(path, config)
    if config.class_name == HYBRID_CLASS:  # of its two decoders, the RNN-T's is NeMo's default
        for name in [name for name in tensors if name.startswith(CTC_DECODER)]:
            del tensors[name]
    check_vocabulary(path, config, tensors, tokenizers)
    _check_sizes(path, config, tensors, max(tokenizer.get_piece_size() for tokenizer in tokenizers))
    return Checkpoint(config, tensors, tokenizers, read_identity(path, config))


def read_tensors(path: Path, config: ModelConfig) -> Tensors:
    """Return the weights as they are stored, with NeMo's names; raise SetupError."""
    if is_ported(path):
        return read_ported_weights(path, config.preprocessor)
    if is_saved(path):
        return read_saved_weights(path, config.dtype or "float32")
    return read_weights(path)


def _check_sizes(path: Path, config: ModelConfig, tensors: Tensors, tokens: int) -> None:
    """Raise SetupError if the config describes a larger model than the weights: NeMo would allocate it first.

    It counts the numbers of the large matrices, which every kind of such a model has.
    """
    outputs = tokens + 1 + (config.joint.num_extra_outputs or 0)
    inputs = config.model_defaults.enc_hidden + config.model_defaults.pred_hidden
    recurrent = 0
    if config.decoder.target.endswith(".RNNTDecoder"):
        recurrent = _recurrent_numbers(config.decoder.prednet)
    minimum = {
        "encoder.pre_encode.": config.encoder.channels * config.encoder.d_model,
        "encoder.layers.": _layer_numbers(config.encoder) * config.encoder.n_layers,
        "decoder.prediction.": recurrent + tokens * config.decoder.prednet.pred_hidden // 2,
        "joint.": config.joint.jointnet.joint_hidden * (inputs + outputs),
    }
    if config.prompts:
        width = config.model_defaults.enc_hidden
        minimum["prompt_kernel."] = 2 * width * (2 * width + config.model_defaults.num_prompts)
    for prefix, expected in minimum.items():
        found = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix))
        if found < expected:
            raise SetupError(
                f"{path}: {tensors.member}",
                f"has {found:,} numbers in {prefix}*, the config requires {expected:,} or more",
                "some are missing, or one of the two belongs to another checkpoint",
            )


def _layer_numbers(encoder: EncoderConfig) -> int:
    """Return the numbers of a layer: two feed-forwards, attention and pointwise convolutions."""
    square = encoder.d_model * encoder.d_model
    return 4 * square * encoder.ff_expansion_factor + 7 * square


def _recurrent_numbers(prediction: PredictionConfig) -> int:
    """Return the numbers of the LSTM's matrices: four gates, each of an input and a hidden matrix."""
    hidden = prediction.pred_hidden
    cells = prediction.rnn_hidden_size or -1
    return 8 * hidden * (cells if cells > 0 else hidden) * prediction.pred_rnn_layers
