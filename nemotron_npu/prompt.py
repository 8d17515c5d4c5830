"""The prompt of a multilingual checkpoint: two layers after the encoder that also take the language.

Formulas: ``_apply_prompt_to_encoded`` and ``initialize_prompt_feature`` of NeMo 3.0.0 (PromptStreamingMixin).  NeMo
appends a vector to each frame that is 1 at the prompt's index and 0 elsewhere.  Its product with the first layer is one
column of the weight, which is added to the bias here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .checkpoint.config import DefaultsConfig
from .checkpoint.weights import Weights
from .linear import AnyLinear, make_linear


class Prompt:
    """``prompt_kernel`` of a checkpoint for one prompt.

    ``weights`` are the tensors whose names begin with ``prompt_kernel.``; ``index`` is the prompt's; ``dtype`` is that
    of the matrix products, see ``make_linear``.  Raises SetupError as ``Weights`` does.
    """

    def __init__(self, weights: Weights, config: DefaultsConfig, index: int, dtype: str) -> None:
        width = config.enc_hidden
        inner = 2 * width
        weight = weights("0.weight", inner, width + config.num_prompts)
        bias = weights("0.bias", inner) + weight[:, width + index]
        self.linear1 = make_linear(weight[:, :width].contiguous(), bias, dtype)
        second = weights("2.weight", width, inner), weights("2.bias", width)
        self.linear2 = make_linear(*second, dtype, floor=0.0)  # its input comes from a rectifier

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return linear2(relu(linear1(x))): [n * slots, width] -> the same."""
        return self.linear2(torch.relu(self.linear1(x)))

    def linears(self) -> Iterator[AnyLinear]:
        """Yield the matrix products."""
        yield self.linear1
        yield self.linear2
