"""``model.safetensors`` of a model of transformers -> tensors with NeMo's names, and the filters of the features."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from ..errors import shown
from .archive import opened_in_folder
from .config import PreprocessorConfig
from .refusal import UNSAFE, Refusal
from .safetensors_file import read_safetensors
from .transformers_config import INDEX, WEIGHTS, weight_files
from .weights import Mappings, Tensors

FEATURES = "preprocessor.featurizer."
NAMES = (  # of transformers -> of NeMo
    (r"encoder\.subsampling\.conv_in\.", "encoder.pre_encode.conv.0."),
    (r"encoder\.subsampling\.layers\.0\.depthwise_conv\.", "encoder.pre_encode.conv.2."),
    (r"encoder\.subsampling\.layers\.0\.pointwise_conv\.", "encoder.pre_encode.conv.3."),
    (r"encoder\.subsampling\.layers\.1\.depthwise_conv\.", "encoder.pre_encode.conv.5."),
    (r"encoder\.subsampling\.layers\.1\.pointwise_conv\.", "encoder.pre_encode.conv.6."),
    (r"encoder\.subsampling\.linear\.", "encoder.pre_encode.out."),
    (r"(encoder\.layers\.\d+\.conv)\.norm\.", r"\1.batch_norm."),
    (r"(encoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.", r"\1.linear_\2."),
    (r"(encoder\.layers\.\d+\.self_attn)\.o_proj\.", r"\1.linear_out."),
    (r"(encoder\.layers\.\d+\.self_attn)\.relative_k_proj\.", r"\1.linear_pos."),
    (r"(encoder\.layers\.\d+\.self_attn)\.bias_([uv])", r"\1.pos_bias_\2"),
    (r"decoder\.embedding\.", "decoder.prediction.embed."),
    (r"decoder\.lstm\.", "decoder.prediction.dec_rnn.lstm."),
    (r"decoder\.decoder_projector\.", "joint.pred."),
    (r"encoder_projector\.", "joint.enc."),
    (r"joint\.head\.", "joint.joint_net.2."),
    (r"prompt_projector\.linear_1\.", "prompt_kernel.0."),
    (r"prompt_projector\.linear_2\.", "prompt_kernel.2."),
)
BREAK = 1000.0  # Hz: Slaney's mel scale is linear below and logarithmic above
MELS_BELOW = 15
STEP = np.log(6.4) / 27


def read_ported_weights(path: Path, config: PreprocessorConfig) -> Tensors:
    """Return the tensors of a folder of transformers as NeMo has them, mapped; transformers computes the filters.

    Raises SetupError.
    """
    try:
        member = INDEX
        files = weight_files(path)
        tensors = Tensors()
        for member in files:
            with opened_in_folder(path, member) as file:
                found = read_safetensors(file, member)
            for name, tensor in found.items():
                if nemo_name(name) in tensors:
                    raise Refusal(
                        "has a tensor twice, by its names in NeMo and in transformers or in two files", UNSAFE
                    )
                tensors[nemo_name(name)] = tensor
            tensors.mappings = Mappings(tensors.mappings + found.mappings)
    except Refusal as refusal:
        raise refusal.of(path, shown(member)) from refusal
    tensors.member = WEIGHTS
    tensors[f"{FEATURES}window"] = torch.hann_window(config.window_length, periodic=False)
    filters = mel_filters(config.sample_rate, config.n_fft or 512, config.features)
    tensors[f"{FEATURES}fb"] = torch.from_numpy(filters)[None]
    return tensors


def nemo_name(name: str) -> str:
    """Return NeMo's name of a tensor of transformers."""
    for pattern, new in NAMES:
        name = re.sub(f"^{pattern}", new, name)
    return name


def mel_filters(rate: int, n_fft: int, mels: int) -> np.ndarray:
    """Return float32 [mels, n_fft // 2 + 1]: triangles of equal area on Slaney's mel scale, as librosa has them."""
    bins = np.fft.rfftfreq(n_fft, 1 / rate)
    top = MELS_BELOW + np.log(rate / 2 / BREAK) / STEP
    scale = np.linspace(0, top, mels + 2)
    above = BREAK * np.exp(STEP * (scale - MELS_BELOW))
    edges = np.where(scale < MELS_BELOW, BREAK / MELS_BELOW * scale, above)
    widths = np.diff(edges)[:, None]
    distances = edges[:, None] - bins
    triangles = np.maximum(0, np.minimum(-distances[:-2] / widths[:-1], distances[2:] / widths[1:]))
    return (triangles.astype(np.float32) * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
