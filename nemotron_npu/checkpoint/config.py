"""``model_config.yaml`` -> a checked config: NeMo would call whatever it names, and allocate whatever it asks for.

Checked are its form, the classes that it names, and the numbers that the engines compute with.  What kinds of parts the
native engine knows is for its encoder, decoder and front end to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import SetupError, shown

MODEL_CLASS = "EncDecRNNTBPEModel"
MODEL_TARGET = re.compile(rf"nemo\.collections\.asr\.models\.(\w+\.)?{MODEL_CLASS}")
TARGET = re.compile(r"nemo\.collections\.asr\.modules\.(?:\w+\.)?(\w+)")
CLASSES = {  # of the parts that are built: the classes that may be named
    "preprocessor": ("AudioToMelSpectrogramPreprocessor", "AudioToMFCCPreprocessor"),
    "encoder": ("ConformerEncoder",),
    "decoder": ("RNNTDecoder", "StatelessTransducerDecoder"),
    "joint": ("RNNTJoint", "SampledRNNTJoint"),
}
OTHERS = re.compile(r"(nemo\.collections|torch\.optim)(\.\w+)+")  # of training: may be named, are never built here
USED = ("target", "sample_rate", "model_defaults", "tokenizer", "labels", "decoding", *CLASSES)
"""The parts that recognising needs."""

AGAIN = "download it again"
MOST_DEPTH = 20
NUMBER = re.compile(r"[-+.:\w]*")
MOST_DIGITS = 100
MOST = 1_000_000  # no number of a used part is larger
WORD = re.compile(r"[\w.+-]{0,100}")
VALUES = {  # what the engines read: least and most, a float among them if it is one; a word; or true and false
    **{f"{part}._target_": WORD for part in CLASSES},
    "preprocessor.sample_rate": (16000, 16000),
    "preprocessor.window_size": (0.001, 1.0),
    "preprocessor.window_stride": (0.001, 1.0),
    "preprocessor.n_window_size": (16, 16000),
    "preprocessor.n_window_stride": (16, 16000),
    "preprocessor.n_fft": (16, 16384),
    "preprocessor.features": (1, 1024),
    "preprocessor.preemph": (0.0, 1.0),
    "preprocessor.mag_power": (0.01, 10.0),
    "preprocessor.dither": (0.0, 1.0),
    "preprocessor.pad_to": (0, 1024),
    "preprocessor.frame_splicing": (1, 16),
    "preprocessor.log": bool,
    "preprocessor.exact_pad": bool,
    "preprocessor.log_zero_guard_type": WORD,
    "encoder.feat_in": (1, 1024),
    "encoder.feat_out": (-1, 16384),
    "encoder.n_layers": (1, 1000),
    "encoder.d_model": (2, 16384),
    "encoder.n_heads": (1, 1024),
    "encoder.ff_expansion_factor": (1, 100),
    "encoder.subsampling": WORD,
    "encoder.subsampling_factor": (1, 64),
    "encoder.subsampling_conv_channels": (-1, 2048),
    "encoder.causal_downsampling": bool,
    "encoder.reduction": WORD,
    "encoder.self_attention_model": WORD,
    "encoder.att_context_style": WORD,
    "encoder.conv_kernel_size": (1, 1001),
    "encoder.conv_norm_type": WORD,
    "encoder.xscaling": bool,
    "encoder.pos_emb_max_len": (1, 50_000),
    "model_defaults.enc_hidden": (1, 16384),
    "model_defaults.pred_hidden": (1, 16384),
    "decoder.prednet.context_size": (1, 16),
    "decoder.prednet.pred_hidden": (1, 16384),
    "decoder.prednet.pred_rnn_layers": (1, 100),
    "decoder.prednet.rnn_hidden_size": (-1, 16384),
    "decoder.normalization_mode": WORD,
    "joint.jointnet.joint_hidden": (1, 16384),
    "joint.jointnet.activation": WORD,
    "joint.num_extra_outputs": (0, 100),
    "decoding.strategy": WORD,
    "decoding.greedy.max_symbols": (1, 1000),
    "decoding.greedy.max_symbols_per_step": (1, 1000),
    "decoding.beam.beam_size": (1, 1000),
    "tokenizer.type": WORD,
}
TDT_DURATIONS = ("decoding.durations", "model_defaults.tdt_durations", "model_defaults.num_tdt_durations")
NULLABLE = (
    "preprocessor.n_window_size",
    "preprocessor.n_window_stride",
    "preprocessor.n_fft",
    "preprocessor.preemph",
    "encoder.reduction",
    "decoder.normalization_mode",
    "decoder.prednet.rnn_hidden_size",
    "joint.num_extra_outputs",
    "decoding.greedy.max_symbols",
    "decoding.greedy.max_symbols_per_step",
)
REQUIRED = (
    *(f"{part}._target_" for part in CLASSES),
    "preprocessor.window_stride",
    "encoder.feat_in",
    "encoder.subsampling_factor",
    "encoder.n_layers",
    "encoder.d_model",
    "model_defaults.enc_hidden",
    "model_defaults.pred_hidden",
    "decoder.prednet.pred_hidden",
    "decoder.prednet.pred_rnn_layers",
    "joint.jointnet.joint_hidden",
    "joint.jointnet.activation",
    "tokenizer.type",
)
TOKENIZER_FILES = ("model_path", "vocab_path", "spe_tokenizer_vocab")
"""The keys by which a tokenizer names its files."""
MOST_CONTEXT = 4096  # frames of attention context: what a stream remembers


def parse_config(text: bytes) -> dict:
    """The checked config of ``model_config.yaml``; raises SetupError, whose message goes behind the member's name."""
    config = _parse(text)
    if not isinstance(config, dict) or not isinstance(config.get("encoder"), dict):
        raise SetupError(f"describes no encoder: {AGAIN}")
    _check_classes(config)
    for part in CLASSES:
        if not isinstance(config.get(part), dict):
            raise SetupError(f"describes no {part}: {AGAIN}")
    _check_values(config)
    return config


def _parse(text: bytes):
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise SetupError(
                    "has aliases, which can stand for more than fits, and NeMo writes none: not safe to load"
                )
            if getattr(event, "tag", None):
                raise SetupError(f"has a tag {shown(event.tag)}: a config is plain values: not safe to load")
            if isinstance(event, yaml.ScalarEvent):
                if event.implicit[0] and len(event.value) > MOST_DIGITS and NUMBER.fullmatch(event.value):
                    raise SetupError(f"has a number of {len(event.value):,} digits: {AGAIN}")
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MOST_DEPTH:
                    raise SetupError(f"is nested more than {MOST_DEPTH} deep: not safe to load")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        where = getattr(error, "problem_mark", None)
        raise SetupError(f"is not valid YAML{f' (line {where.line + 1})' if where else ''}: {AGAIN}") from error


def _check_classes(config: dict) -> None:
    """Only the model class that runs here, of parts that belong to it; nothing else is named anywhere."""
    target = config.get("target")
    if not isinstance(target, str) or not MODEL_TARGET.fullmatch(target):
        name = str(target).rpartition(".")[2]
        kind = shown(target if name == MODEL_CLASS else name) if target else "unknown"
        raise SetupError(f"names the model class {kind}: {MODEL_CLASS} is what runs here")
    for place, value in walk(config):
        keys = place.split(".")
        first, key = keys[0], keys[-1]
        names_class = "_target_" in keys or first in USED and key in ("cls", "target")  # the latter are Hydra's of old
        if not names_class or place == "target":
            continue
        part = place.rpartition(".")[0]
        known = TARGET.fullmatch(value) if isinstance(value, str) else None
        if part in CLASSES and known and known[1] not in CLASSES[part]:
            raise SetupError(f"names the {part} {shown(known[1])}: {CLASSES[part][0]} is what runs here")
        if not (known if part in CLASSES else first not in USED and OTHERS.fullmatch(str(value))):
            raise SetupError(f"has {shown(place)}: {shown(value)}: not a part of {MODEL_CLASS}: not safe to load")
    durations = any(_value(config, place) for place in TDT_DURATIONS)
    if durations or "tdt" in (_value(config, "loss.loss_name"), _value(config, "decoding.model_type")):
        raise SetupError(f"describes a TDT model, whose tokens have durations: a plain {MODEL_CLASS} is what runs here")


def _check_values(config: dict) -> None:
    for place in REQUIRED:
        if _value(config, place) is None:
            raise SetupError(f"does not give {place}: {AGAIN}")
    for place, allowed in VALUES.items():
        value = _value(config, place)
        if value is None:
            part, _, key = place.rpartition(".")
            if place not in NULLABLE and key in (_value(config, part) or {}):
                raise SetupError(f"has {place}: null, not {_said(allowed)}: {AGAIN}")
        elif not _is_allowed(value, allowed):
            raise SetupError(f"has {place}: {shown(value)}, not {_said(allowed)}: {AGAIN}")
    for part in USED:
        for place, value in walk(config.get(part), part):
            if isinstance(value, (int, float)) and not abs(value) <= MOST:
                raise SetupError(f"has {shown(place)}: {shown(value)}, more than makes sense: {AGAIN}")
            if isinstance(value, str) and "${" in value and part != "labels" and not place.startswith("joint.vocab"):
                raise SetupError(f"has {shown(place)}: {shown(value)}: a reference: NeMo saves what it stands for")
            if part == "decoding" and value and place.endswith(("_model", "_path", "_file", "_dir")):
                raise SetupError(f"has {shown(place)}: {shown(value)}: a file that is not in the checkpoint")
    for part in tokenizer_parts(config):
        if not isinstance(part, dict) or part.get("type") != "bpe" or not part.get("model_path"):
            raise SetupError("has no sentencepiece tokenizer (type: bpe, model_path): none else runs here")
        for key in TOKENIZER_FILES:
            if not isinstance(part.get(key), (str, type(None))):
                raise SetupError(f"has tokenizer.{key}: {shown(part[key])}, not a name: {AGAIN}")
    encoder = config["encoder"]
    features = config["preprocessor"].get("features", 64)
    if encoder["feat_in"] != features:
        raise SetupError(f"has encoder.feat_in: {encoder['feat_in']}, but {features} preprocessor.features: {AGAIN}")
    heads = encoder.get("n_heads", 4)
    if encoder["d_model"] % heads or encoder["d_model"] % 2:
        raise SetupError(f"has encoder.d_model: {encoder['d_model']}, which {heads} heads cannot share: {AGAIN}")
    chunked = encoder.get("att_context_style") == "chunked_limited"
    for pair in context_sizes(encoder.get("att_context_size")):
        if not _are_frames(pair, -1) or chunked and (pair[1] < 0 or pair[0] > 0 and pair[0] % (pair[1] + 1)):
            raise SetupError(f"has encoder.att_context_size: {shown(pair)}, not [left, right] of whole chunks: {AGAIN}")
    context, kernel = encoder.get("conv_context_size"), encoder.get("conv_kernel_size", 31)
    if context not in (None, "causal") and (not _are_frames(context, 0) or sum(context) + 1 != kernel):
        raise SetupError(f"has encoder.conv_context_size: {shown(context)}, not causal: {AGAIN}")
    guard = config["preprocessor"].get("log_zero_guard_value", 0.0)
    if guard not in ("tiny", "eps") and not _is_allowed(guard, (0.0, 1.0)):
        raise SetupError(f"has preprocessor.log_zero_guard_value: {shown(guard)}, not 0.0 to 1.0, tiny or eps: {AGAIN}")


def _is_allowed(value, allowed) -> bool:
    if allowed is WORD:
        return isinstance(value, str) and WORD.fullmatch(value) is not None
    if allowed is bool:
        return isinstance(value, bool)
    least, most = allowed
    kinds = (int, float) if float in (type(least), type(most)) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most


def _said(allowed) -> str:
    if allowed is WORD:
        return "a word"
    if allowed is bool:
        return "true or false"
    return str(allowed[0]) if allowed[0] == allowed[1] else f"{allowed[0]} to {allowed[1]}"


def _are_frames(pair, least: int) -> bool:
    """Whether it is a [left, right] context, of ``least`` frames or more."""
    return (
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and least <= n <= MOST_CONTEXT for n in pair)
    )


def _value(config: dict, place: str):
    """What a dotted name stands for; None where there is nothing."""
    value = config
    for key in place.split("."):
        if value is not None and not isinstance(value, dict):
            raise SetupError(f"has no {place}, but {shown(value)} where its parts should be")
        value = (value or {}).get(key)
    return value


def walk(value, place: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every value inside that is no mapping or list."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield place, value
        return
    for key, item in items:
        yield from walk(item, f"{place}.{key}" if place else str(key))


def tokenizer_parts(config: dict) -> list[dict]:
    """The config's tokenizer, or that of each language."""
    tokenizer = config["tokenizer"]
    if tokenizer["type"] != "agg":
        return [tokenizer]
    languages = tokenizer.get("langs")
    return list(languages.values()) if isinstance(languages, dict) and languages else [None]


def context_sizes(sizes: list | None) -> list[list[int]]:
    """``att_context_size``, one [left, right] or several, as several; -1, and none at all, is no limit."""
    sizes = sizes or [-1, -1]
    return sizes if isinstance(sizes, list) and isinstance(sizes[0], list) else [sizes]
