"""``model_config.yaml`` -> ``ModelConfig``, with the checks beyond single values.

They concern classes, references to other files, and values that have to agree.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import shown
from .archive import CONFIG, PORTED_CONFIG, SAVED_CONFIG, is_ported, is_saved, read_member
from .config import (
    HYBRID_CLASS,
    MODEL_CLASS,
    PROMPT_CLASS,
    DecoderConfig,
    DecodingConfig,
    DefaultsConfig,
    EncoderConfig,
    JointConfig,
    ModelConfig,
    PreprocessorConfig,
    TokenizerConfig,
)
from .config_fields import WORD, read_part
from .json_file import parse_json
from .references import referenced_parts, write_out
from .refusal import UNSAFE, Refusal
from .safe_yaml import parse_yaml, walk
from .transformers_config import nemo_values

MAX_BYTES = 8 << 20  # the published one has 0.03 MB; lists of training data take megabytes
MODEL_CLASSES = (MODEL_CLASS, HYBRID_CLASS, PROMPT_CLASS)
MODEL_TARGET = re.compile(rf"nemo\.collections\.asr\.models\.(\w+\.)?({'|'.join(MODEL_CLASSES)})")
TARGET = re.compile(r"nemo\.collections\.asr\.modules\.(?:\w+\.)?(\w+)")
CLASSES = {  # the parts that are built, and the classes that they may name
    "preprocessor": ("AudioToMelSpectrogramPreprocessor", "AudioToMFCCPreprocessor"),
    "encoder": ("ConformerEncoder", "ConformerEncoderAdapter"),  # that of adapters is the same without their weights
    "decoder": ("RNNTDecoder", "StatelessTransducerDecoder"),
    "joint": ("RNNTJoint", "SampledRNNTJoint"),
}
USED = ("target", "sample_rate", "model_defaults", "tokenizer", "labels", "decoding", *CLASSES)
"""The parts that transcription needs; whatever else a config has is neither built nor checked."""
LITERAL = ("labels", "joint.vocabulary")  # of these, nothing is a reference
SAVED_DTYPES = ("float32", "bfloat16", "float16", "int8")
MAX_NUMBER = 1_000_000  # no number of a used part is larger
MAX_CONTEXT = 4096  # frames of attention context: what a stream remembers
TDT = ("decoding.durations", "model_defaults.tdt_durations", "model_defaults.num_tdt_durations")
TOKENIZER_FILES = ("model_path", "vocab_path", "spe_tokenizer_vocab")
"""The keys by which a tokenizer names its files."""


def read_config(path: Path) -> ModelConfig:
    """Return the checked ``model_config.yaml`` of a ``.nemo`` file, without reading its weights or importing torch.

    For a folder of transformers it is made of ``config.json`` and ``processor_config.json``; a file that ``--save`` has
    written has it in JSON.
    Raises SetupError when the file is no such archive, holds a model of another class, or a config that makes no sense
    or is not safe.
    """
    if is_ported(path):
        try:
            return make_config(nemo_values(path))
        except Refusal as refusal:
            raise refusal.of(path, PORTED_CONFIG) from refusal
    if is_saved(path):
        try:
            return _parse_saved(read_member(path, SAVED_CONFIG, MAX_BYTES))
        except Refusal as refusal:
            raise refusal.of(path, SAVED_CONFIG) from refusal
    text = read_member(path, CONFIG, MAX_BYTES)
    try:
        return parse_config(text)
    except Refusal as refusal:
        raise refusal.of(path, CONFIG) from refusal


def _parse_saved(text: bytes) -> ModelConfig:
    values = parse_json(text)
    dtype = values.pop("dtype", None)
    if dtype not in SAVED_DTYPES:
        raise Refusal(f"has dtype: {shown(dtype)}", f"supported: {', '.join(SAVED_DTYPES)}")
    return replace(make_config(values), dtype=dtype)


def parse_config(text: bytes) -> ModelConfig:
    """Return the checked config of ``model_config.yaml``; raise Refusal."""
    parts = {*USED, "loss"}
    values = parse_yaml(text, parts)
    if referenced_parts(values) - parts:
        values = parse_yaml(text)
    if not isinstance(values, dict) or not isinstance(values.get("encoder"), dict):
        raise Refusal("describes no encoder")
    return make_config(values)


def make_config(values: dict[str, Any]) -> ModelConfig:
    """Return the checked config of a mapping as NeMo writes it; raise Refusal."""
    values = write_out(values, (*USED, "loss"), LITERAL)
    _check_classes(values)
    for name in CLASSES:
        if not isinstance(values.get(name), dict):
            raise Refusal(f"describes no {name}")
    if not isinstance(values.get("tokenizer"), dict):
        raise Refusal("describes no tokenizer")
    config = ModelConfig(
        target=values["target"],
        preprocessor=read_part(PreprocessorConfig, values["preprocessor"], "preprocessor"),
        encoder=read_part(EncoderConfig, values["encoder"], "encoder"),
        decoder=read_part(DecoderConfig, values["decoder"], "decoder"),
        joint=read_part(JointConfig, values["joint"], "joint"),
        decoding=read_part(DecodingConfig, values.get("decoding"), "decoding"),
        model_defaults=read_part(DefaultsConfig, values.get("model_defaults"), "model_defaults"),
        tokenizers=tuple(_read_tokenizer(tokenizer) for tokenizer in tokenizer_parts(values)),
        multilingual=values["tokenizer"].get("type") != "bpe",
        labels=values.get("labels"),
        raw={name: values[name] for name in USED if name in values},
    )
    _check_references(values)
    _check_preprocessor(config.preprocessor)
    _check_encoder(config.encoder, config.preprocessor)
    if config.class_name == PROMPT_CLASS:
        _check_prompts(config.model_defaults)
    return config


def _check_classes(values: dict[str, Any]) -> None:
    """Raise Refusal unless the model class runs here and only classes of its parts are named."""
    target = values.get("target")
    if not isinstance(target, str) or not MODEL_TARGET.fullmatch(target):
        raise Refusal(f"has the model class {_class_name(target)}", f"supported: {', '.join(MODEL_CLASSES)}")
    for name in USED:
        for place, value in walk(values.get(name), name):
            if place != "target" and _names_class(place):
                _check_class(place, value)
    durations = any(_value(values, place) for place in TDT)
    if durations or "tdt" in (_value(values, "loss.loss_name"), _value(values, "decoding.model_type")):
        raise Refusal("describes a TDT model, whose tokens have durations", f"supported: {MODEL_CLASS}")


def _class_name(target: object) -> str:
    if not target:
        return "unknown"
    name = str(target).rpartition(".")[2]
    return shown(target if name in MODEL_CLASSES else name)


def _names_class(place: str) -> bool:
    keys = place.split(".")
    return "_target_" in keys or keys[-1] in ("cls", "target")  # those of old versions of Hydra


def _check_class(place: str, value: object) -> None:
    name = place.rpartition(".")[0]
    known = TARGET.fullmatch(value) if isinstance(value, str) else None
    if name in CLASSES and known and known[1] not in CLASSES[name]:
        raise Refusal(f"has the {name} {shown(known[1])}", f"supported: {CLASSES[name][0]}")
    if name not in CLASSES or not known:
        raise Refusal(f"has {shown(place)}: {shown(value)}, not a part of {MODEL_CLASS}", UNSAFE)


def _check_references(values: dict[str, Any]) -> None:
    """Raise Refusal for huge numbers and files outside the checkpoint in the parts that are used."""
    for name in USED:
        for place, value in walk(values.get(name), name):
            subject = f"has {shown(place)}: {shown(value)}"
            if isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:
                raise Refusal(f"{subject}, which is too large")
            if name == "decoding" and value and place.endswith(("_model", "_path", "_file", "_dir")):
                raise Refusal(f"{subject}, a file that is not in the checkpoint", "")


def tokenizer_parts(values: dict[str, Any]) -> list[Any]:
    """Return the config's tokenizer, or that of each language."""
    tokenizer = values["tokenizer"]
    if tokenizer.get("type") != "agg":
        return [tokenizer]
    languages = tokenizer.get("langs")
    return list(languages.values()) if isinstance(languages, dict) and languages else [None]


def _read_tokenizer(values: object) -> TokenizerConfig:
    if not isinstance(values, dict) or values.get("type") != "bpe" or not values.get("model_path"):
        raise Refusal("has no sentencepiece tokenizer (type: bpe, model_path)", "supported: sentencepiece")
    files = {}
    for key in TOKENIZER_FILES:
        name = values.get(key)
        if name is None:
            continue
        if not isinstance(name, str):
            raise Refusal(f"has tokenizer.{key}: {shown(name)}, not a name")
        files[key] = name
    return TokenizerConfig(files)


def _check_preprocessor(preprocessor: PreprocessorConfig) -> None:
    if not preprocessor.window_length or not preprocessor.hop_length:
        raise Refusal("has preprocessor windows of no length", "")
    guard = preprocessor.log_zero_guard_value
    if guard in ("tiny", "eps"):
        return
    is_number = isinstance(guard, (int, float)) and not isinstance(guard, bool)
    if not is_number or not 0 <= guard <= 1:
        raise Refusal(f"has preprocessor.log_zero_guard_value: {shown(guard)}, not 0.0 to 1.0, tiny or eps", "")


def _check_prompts(defaults: DefaultsConfig) -> None:
    prompts = defaults.prompt_dictionary
    if not defaults.initialize_prompt_feature:
        return
    if not isinstance(prompts, dict) or not prompts:
        raise Refusal("has no model_defaults.prompt_dictionary")
    for name, index in prompts.items():
        if not isinstance(name, str) or not WORD.fullmatch(name):
            raise Refusal(f"has the prompt {shown(name)}, not a word")
        if type(index) is not int or not 0 <= index < defaults.num_prompts:
            raise Refusal(f"has the prompt {name}: {shown(index)}, not 0 to {defaults.num_prompts - 1}")


def _check_encoder(encoder: EncoderConfig, preprocessor: PreprocessorConfig) -> None:
    features = preprocessor.features * preprocessor.frame_splicing
    if encoder.feat_in != features:
        raise Refusal(f"has encoder.feat_in: {encoder.feat_in}, but {features} preprocessor.features", "")
    if encoder.d_model % encoder.n_heads or encoder.d_model % 2:
        raise Refusal(f"has encoder.d_model: {encoder.d_model}, not a multiple of {encoder.n_heads} heads and of 2", "")
    for pair in encoder.contexts:
        if not _is_context(pair, chunked=encoder.chunked):
            raise Refusal(f"has encoder.att_context_size: {shown(pair)}, not [left, right] of whole chunks", "")
    context = encoder.conv_context_size
    if context in (None, "causal"):
        return
    if not _are_frames(context, 0) or sum(context) + 1 != encoder.conv_kernel_size:
        raise Refusal(f"has encoder.conv_context_size: {shown(context)}, not causal", "")


def _is_context(pair: Any, *, chunked: bool) -> bool:
    if not _are_frames(pair, -1):
        return False
    left, right = pair
    if not chunked:
        return True
    return right >= 0 and (left <= 0 or left % (right + 1) == 0)


def _are_frames(pair: object, low: int) -> bool:
    """Return whether it is a [left, right] context of ``low`` frames or more."""
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    return all(type(n) is int and low <= n <= MAX_CONTEXT for n in pair)


def _value(values: dict[str, Any], place: str) -> Any:
    """Return the value of a dotted key, or None."""
    value: Any = values
    for key in place.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
