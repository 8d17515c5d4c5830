"""How sure the model was of a token: from the whole distribution that it was chosen from, as NeMo measures it.

Formulas: ``asr_confidence_utils.get_confidence_measure_bank`` of NeMo 2.7.3; Laptev and Ginsburg, "Fast Entropy-Based
Methods of Word-Level Confidence Estimation for End-to-End ASR" (arXiv 2212.08703).  Each is a sum over the
distribution, taken on the device, and a scalar formula that maps it to 0 (uniform) .. 1 (certain).
"""

from __future__ import annotations

import math

METHODS = ("max_prob", "tsallis", "gibbs", "renyi")
ALPHA = 0.33  # power of the probabilities in the entropies, NeMo's default; of max_prob it is 1


def statistic(log_probabilities, method: str):
    """The sum that ``confidence`` maps.  torch float [..., V] -> [...]."""
    if method == "max_prob":
        return log_probabilities.amax(-1).exp()
    powers = (log_probabilities * ALPHA).exp()
    return (powers * log_probabilities if method == "gibbs" else powers).sum(-1)


def confidence(statistic: float, method: str, size: int) -> float:
    """0 .. 1, of a distribution over ``size`` tokens, blank included.  The entropies are normalised exponentially."""
    if method == "max_prob":
        return (statistic * size - 1) / (size - 1)
    if method == "renyi":
        return (statistic ** (1 / (ALPHA - 1)) * size - 1) / (size - 1)
    if method == "gibbs":
        uniform = size ** (-ALPHA * size ** (1 - ALPHA))
        return (math.exp(statistic * ALPHA) - uniform) / (1 - uniform)
    uniform = math.exp((1 - size ** (1 - ALPHA)) / (1 - ALPHA))
    return (math.exp((1 - statistic) / (1 - ALPHA)) - uniform) / (1 - uniform)
