"""Write a checkpoint as one file that loads faster and is smaller: the weights in one dtype, ready to be mapped."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch

from .checkpoint import saved
from .checkpoint.load import read_checkpoint
from .checkpoint.safetensors_file import write_safetensors
from .checkpoint.weights import SCALES, Tensors
from .errors import SetupError, Unsupported
from .host.files import Folder
from .linear import quantize
from .model import check_fit, count_parameters

METADATA = {"nemotron_npu": "1", "format": "pt"}
"""Leads the header: ``checkpoint.archive.SAVED_START``; the second is what other readers ask for."""


def save_checkpoint(source: Path, target: Path, dtype: str | None = None) -> tuple[int, int]:
    """Write the checkpoint ``source`` to the file ``target``, whole or not at all; return (parameters, bytes).

    ``dtype``, by default float32, is that of the encoder's matrix products: "float32", "bfloat16", "float16", "int8".
    The result does not depend on this machine, and its tokens are those of ``source`` loaded in this dtype.
    Raises SetupError when one of the two cannot be used, or the native engine does not support the checkpoint.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise SetupError(f"--save {target}", "exists and is not a file")
    folder = _open(target)
    try:
        checkpoint = read_checkpoint(source)
        config = checkpoint.config
        dtype = config.choose_dtype(dtype)
        try:
            if config.multilingual:
                raise Unsupported("a tokenizer for each language")
            check_fit(source, checkpoint)
        except Unsupported as reason:
            raise SetupError(str(source), f"not supported by the native engine: {reason}") from reason
        tensors = saved.members(config, dtype, checkpoint.tokenizers[0].serialized_model_proto())
        tensors |= _converted(checkpoint.tensors, dtype)
        folder.write(target.name, write_safetensors(tensors, METADATA))
        return count_parameters(checkpoint.tensors), target.stat().st_size
    except OSError as error:
        raise SetupError(f"--save {target}", f"cannot be written: {error.strerror}") from error
    finally:
        folder.close()


def _open(target: Path) -> Folder:
    """Take the folder of ``target`` for this process alone, which removes what a killed one has left."""
    try:
        return Folder.alone(target.parent)
    except BlockingIOError as error:
        raise SetupError(f"--save {target}", "another run is writing to this folder") from error
    except OSError as error:
        raise SetupError(f"--save {target}", f"cannot be written: {error.strerror}") from error


def _converted(tensors: Tensors, dtype: str) -> dict[str, torch.Tensor]:
    """Return the weights as the file has them; those that stay as they are still lie in the source."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stored = saved.stored_dtype(name, dtype)
        if stored == "int8":
            levels, scales = quantize(tensor.float().view(len(tensor), -1))
            converted[name] = levels.view(tensor.shape)
            converted[name + SCALES] = scales
        elif tensor.is_floating_point():
            converted[name] = tensor.to(getattr(torch, stored))
        else:
            converted[name] = tensor
        tensors.mappings.release()
    return converted
