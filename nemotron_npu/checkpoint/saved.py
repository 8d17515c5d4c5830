"""The file that ``--save`` writes: config, tokenizer and weights in one dtype, as one ``.safetensors`` file.

The weights of the encoder's matrix products have the dtype, those of its positions in int8 only; all others stay
float32, as they are in every dtype on a CPU.  In int8 each such weight has a tensor of scales beside it.  Nothing in
the file depends on the CPU that wrote it, or on the device that will read it.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import torch

from .archive import SAVED_CONFIG, opened_saved
from .config import ModelConfig
from .refusal import Refusal
from .safetensors_file import read_safetensors
from .weights import SCALES, Tensors

TOKENIZER = "tokenizer.model"
MATRICES = re.compile(
    r"encoder\.(pre_encode\.out|out_proj|layers\.\d+\.(feed_forward[12]\.linear[12]|self_attn\.linear_(q|k|v|out)"
    r"|conv\.pointwise_conv[12]))\.weight"
)
"""Names of the weights that the encoder packs for its matrix products."""
POSITIONS = re.compile(r"encoder\.layers\.\d+\.self_attn\.linear_pos\.weight")
"""Names of the weights that it multiplies in float32, once for each block size."""


def stored_dtype(name: str, dtype: str) -> str:
    """Return the dtype that the float weight ``name`` has in a file of ``dtype``."""
    return dtype if MATRICES.fullmatch(name) or (dtype == "int8" and POSITIONS.fullmatch(name)) else "float32"


def members(config: ModelConfig, dtype: str, tokenizer: bytes) -> dict[str, torch.Tensor]:
    """Return the files that go into it beside the weights, as uint8 [bytes]: the config and the sentencepiece model."""
    values = copy.deepcopy(config.raw)
    values["dtype"] = dtype
    values["tokenizer"] = {"type": "bpe", "model_path": TOKENIZER}
    values.pop("labels", None)  # the tokenizer has them
    values["joint"].pop("vocabulary", None)
    files = {SAVED_CONFIG: json.dumps(values, indent=1).encode(), TOKENIZER: tokenizer}
    return {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()}


def read_saved_weights(path: Path, dtype: str) -> Tensors:
    """Return the weights of a file that ``--save`` has written in ``dtype``, mapped; raise SetupError."""
    with opened_saved(path) as file:
        tensors = read_safetensors(file, "weights")
        for name in (SAVED_CONFIG, TOKENIZER):
            tensors.pop(name, None)
        for name, tensor in tensors.items():
            expected = stored_dtype(name, dtype)
            found = str(tensor.dtype).removeprefix("torch.")
            if tensor.dtype != torch.int64 and found != expected:  # the counters of batch norms are int64
                raise Refusal(f"has {name[:100]!r} in {found}, not {expected}", "save it again")
        tensors.quantized = dtype == "int8"
    return tensors


def is_scale(name: str) -> bool:
    """Return whether this is the name of a tensor of scales, which is no parameter."""
    return name.endswith(SCALES) and stored_dtype(name.removesuffix(SCALES), "int8") == "int8"
