"""``config.json`` and ``processor_config.json`` of a model of transformers -> the config that NeMo would have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import shown
from .archive import PORTED_CONFIG, read_member
from .json_file import parse_json
from .refusal import NOT_FLOATS, UNSAFE, Refusal

PROCESSOR = "processor_config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights that lie in several files
MAX_FILES = 1000
MAX_BYTES = 8 << 20
NEMO = "nemo.collections.asr"
MODELS = {  # model_type of transformers -> class of NeMo
    "nemotron_asr_streaming": f"{NEMO}.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    "nemotron3_5_asr": f"{NEMO}.models.rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt",
}
FIXED = {  # what NeMo's model has no other value for
    "hidden_act": "silu",
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
}
RATE = 16000


def nemo_values(path: Path) -> dict[str, Any]:
    """Return the mapping that ``model_config.yaml`` would have for a folder of transformers, unchecked; raise Refusal.

    Defaults are those of transformers 5.24.
    """
    config = parse_json(read_member(path, PORTED_CONFIG, MAX_BYTES))
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        raise Refusal(f"has the model_type {shown(kind)}", f"supported: {', '.join(MODELS)}")
    if config.get("quantization_config"):
        raise Refusal("has a quantization_config", NOT_FLOATS)
    processor = parse_json(read_member(path, PROCESSOR, MAX_BYTES)) if os.path.lexists(path / PROCESSOR) else {}
    encoder = _mapping(config, "encoder_config")
    width = _integer(config, "decoder_hidden_size", 640)
    tokens = _integer(config, "vocab_size", 1025) - 1
    if _integer(config, "blank_token_id", tokens) != tokens:
        raise Refusal(f"has blank_token_id: {config['blank_token_id']}, not the last of {tokens + 1} tokens")
    return {
        "target": MODELS[kind],
        "sample_rate": RATE,
        "model_defaults": _defaults(config, processor, width),
        "tokenizer": {"type": "bpe", "model_path": TOKENIZER},
        "preprocessor": _preprocessor(encoder, _mapping(processor, "feature_extractor")),
        "encoder": _encoder(encoder, processor),
        "decoder": {
            "_target_": f"{NEMO}.modules.RNNTDecoder",
            "vocab_size": tokens,
            "prednet": {"pred_hidden": width, "pred_rnn_layers": _integer(config, "num_decoder_layers", 2)},
        },
        "joint": {  # its dropout only shows in the names of its layers
            "_target_": f"{NEMO}.modules.RNNTJoint",
            "jointnet": {"joint_hidden": width, "activation": config.get("hidden_act", "relu"), "dropout": 0.2},
        },
        "decoding": {
            "strategy": "greedy_batch",
            "greedy": {"max_symbols": _integer(config, "max_symbols_per_step", 10)},
        },
    }


def weight_files(path: Path) -> list[str]:
    """Return the files in a folder of transformers that have its weights: one, or those of its index; raise Refusal."""
    if os.path.lexists(path / WEIGHTS) or not os.path.lexists(path / INDEX):
        return [WEIGHTS]
    placed = parse_json(read_member(path, INDEX, MAX_BYTES)).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise Refusal("has no weight_map of files")
    names = sorted(set(placed.values()))
    if len(names) > MAX_FILES:
        raise Refusal(f"names {len(names):,} files", UNSAFE)
    return names


def find_weight_files(path: Path) -> list[str]:
    """Return ``weight_files`` of a folder; raise SetupError."""
    try:
        return weight_files(path)
    except Refusal as refusal:
        raise refusal.of(path, INDEX) from refusal


def _encoder(values: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    for key, expected in FIXED.items():
        if values.get(key, expected) != expected:
            raise Refusal(f"has encoder_config.{key}: {shown(values[key])}", f"supported: {expected}")
    width = _integer(values, "hidden_size", 1024)
    heads = _integer(values, "num_attention_heads", 8)
    inner = _integer(values, "intermediate_size", 4096)
    if not width or inner % width or _integer(values, "num_key_value_heads", heads) != heads:
        raise Refusal(f"has a hidden_size of {width}, an intermediate_size of {inner} and {heads} heads: not supported")
    left = _integer(values, "sliding_window", 71) - 1
    right = _integer(values, "default_num_lookahead_tokens", 13)
    right = _integer(processor, "default_num_lookahead_tokens", right)
    others = processor.get("supported_num_lookahead_tokens", values.get("supported_num_lookahead_tokens"))
    if not isinstance(others, list):
        others = []
    return {
        "_target_": f"{NEMO}.modules.ConformerEncoder",
        "feat_in": _integer(values, "num_mel_bins", 80),
        "n_layers": _integer(values, "num_hidden_layers", 24),
        "d_model": width,
        "n_heads": heads,
        "ff_expansion_factor": inner // width,
        "use_bias": values.get("attention_bias", True),
        "subsampling": "dw_striding",
        "subsampling_factor": _integer(values, "subsampling_factor", 8),
        "subsampling_conv_channels": _integer(values, "subsampling_conv_channels", 256),
        "causal_downsampling": True,
        "att_context_size": [[left, right], *([left, other] for other in others if other != right)],
        "att_context_style": "chunked_limited",
        "xscaling": values.get("scale_input", True),
        "pos_emb_max_len": _integer(values, "max_position_embeddings", 5000),
        "conv_kernel_size": _integer(values, "conv_kernel_size", 9),
        "conv_norm_type": "layer_norm",
        "conv_context_size": "causal",
    }


def _preprocessor(encoder: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    dtype = values.get("mel_filters_dtype", "float32")
    if dtype != "float32":
        raise Refusal(f"has feature_extractor.mel_filters_dtype: {shown(dtype)}", "supported: float32")
    mels = _integer(encoder, "num_mel_bins", 80)
    return {
        "_target_": f"{NEMO}.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": _integer(values, "sampling_rate", RATE),
        "normalize": "NA",
        "window_size": None,
        "window_stride": None,
        "n_window_size": _integer(values, "win_length", 400),
        "n_window_stride": _integer(values, "hop_length", 160),
        "n_fft": _integer(values, "n_fft", 512),
        "features": _integer(values, "feature_size", mels),
        "preemph": values.get("preemphasis", 0.97),
        "dither": 0.0,
        "pad_to": 0,
    }


def _defaults(config: dict[str, Any], processor: dict[str, Any], width: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "enc_hidden": _integer(_mapping(config, "encoder_config"), "hidden_size", 1024),
        "pred_hidden": width,
    }
    if config["model_type"] == "nemotron3_5_asr":
        if "prompt_dictionary" not in processor:
            raise Refusal(f"needs the prompt_dictionary of {PROCESSOR}", "copy that file from the model's repository")
        defaults["initialize_prompt_feature"] = True
        defaults["num_prompts"] = _integer(config, "num_prompts", 128)
        defaults["prompt_dictionary"] = processor["prompt_dictionary"]
    return defaults


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise Refusal(f"has {key}: {shown(found)}, not its parts")
    return found


def _integer(values: dict[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise Refusal(f"has {key}: {shown(value)}, not a count")
    return value
