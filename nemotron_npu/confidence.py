"""Confidence of a token, computed from the distribution that it was chosen from, as NeMo does.

Formulas: ``asr_confidence_utils.get_confidence_measure_bank`` of NeMo 2.7.3; Laptev and Ginsburg, "Fast Entropy-Based
Methods of Word-Level Confidence Estimation for End-to-End ASR" (arXiv 2212.08703).  Each method is a sum over the
distribution, computed on the device, and a scalar formula that maps it to 0 (uniform) .. 1 (certain).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help lists the methods without torch
    import torch

METHODS = ("max_prob", "tsallis", "gibbs", "renyi")
ALPHA = 0.33  # power of the probabilities in the entropies, NeMo's default; max_prob has 1


def statistic(log_probabilities: torch.Tensor, method: str) -> torch.Tensor:
    """Return the sum that ``confidence`` maps: float [..., vocabulary] -> [...]."""
    if method == "max_prob":
        return log_probabilities.amax(-1).exp()
    powers = (log_probabilities * ALPHA).exp()
    return (powers * log_probabilities if method == "gibbs" else powers).sum(-1)


def confidence(statistic: float, method: str, size: int) -> float:
    """Return the confidence, 0 .. 1, of a distribution over ``size`` tokens, including blank.

    The entropies are normalized exponentially.
    """
    if method == "max_prob":
        return (statistic * size - 1) / (size - 1)
    if method == "renyi":
        return (statistic ** (1 / (ALPHA - 1)) * size - 1) / (size - 1)
    if method == "gibbs":
        uniform = size ** (-ALPHA * size ** (1 - ALPHA))
        return (math.exp(statistic * ALPHA) - uniform) / (1 - uniform)
    uniform = math.exp((1 - size ** (1 - ALPHA)) / (1 - ALPHA))
    return (math.exp((1 - statistic) / (1 - ALPHA)) - uniform) / (1 - uniform)
