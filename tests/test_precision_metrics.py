"""Error measures of two tensors, and of a stage that arrives block by block."""

import math

import numpy as np
import pytest
import torch

from nemotron_npu.precision.metrics import Tally, difference


def test_difference_has_the_figures_of_its_formulas():
    """MAE, MSE, largest and relative error follow from their definitions."""
    a, b = torch.tensor([1.0, 2.0, -3.0, 4.0]), torch.tensor([1.0, 2.5, -3.0, 3.0])
    d = difference(a, b)
    assert d.mae == pytest.approx(1.5 / 4) and d.mse == pytest.approx(1.25 / 4) and d.max_error == 1.0
    assert d.relative_error_percent == pytest.approx(100 * 1.5 / 9.5)


def test_difference_of_silence_is_zero_or_infinite():
    """Two silent outputs are equal; an error on silence is infinite."""
    zero = torch.zeros(3)
    assert difference(zero, zero).relative_error_percent == 0
    assert difference(zero + 1, zero).relative_error_percent == float("inf")


def test_difference_of_other_shapes_is_refused():
    """Outputs of different shapes have no difference."""
    with pytest.raises(ValueError, match="shapes differ"):
        difference(torch.zeros(2, 3), torch.zeros(2, 4))


def test_tally_of_blocks_equals_the_whole():
    """The figures of a stage that arrives block by block are those of the whole tensors."""
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(40, 6, generator=generator)
    a = b + 0.01 * torch.randn(40, 6, generator=generator)
    tally = Tally(1.0)
    for rows in np.split(np.arange(40), [1, 8, 30]):
        tally.add(a[rows], b[rows], rows, rows // 4)
    whole, figures = difference(a, b), tally.as_dict()
    for name in ("mse", "mae", "max_error", "relative_error_percent"):
        assert figures[name] == pytest.approx(getattr(whole, name), rel=1e-9)
    a, b = a.double(), b.double()
    assert figures["cosine"] == pytest.approx(float(torch.nn.functional.cosine_similarity(a.ravel(), b.ravel(), 0)))
    assert figures["snr_db"] == pytest.approx(10 * math.log10(float((b**2).sum() / ((a - b) ** 2).sum())))
    assert figures["candidate_range"] == [float(a.min()), float(a.max())]
    percent = 100 * (a - b).abs().sum(1) / b.abs().sum(1)
    assert figures["worst_row_frame"] == int(percent.argmax()) and figures["worst_row_percent"] == float(percent.max())


def tally_of(wrong, right):
    tally, rows = Tally(tolerance=1.0), np.arange(100)
    tally.add(wrong, right, rows, rows // 10)
    return tally


def test_tally_exceeds_by_the_sum_of_its_rows():
    """A recording exceeds where its first row above the tolerance lies, but not for an error below the tolerance."""
    right = torch.ones(100, 4)
    assert not tally_of(right * 1.009, right).exceeds
    everywhere = tally_of(torch.cat([right[:30], right[30:] * 1.02]), right)
    assert everywhere.exceeds and everywhere.first.frame == 30 and everywhere.first.step == 3


def test_tally_exceeds_by_a_single_row():
    """One frame with more than ten times the tolerance exceeds, although the recording has an error of 0.2 %."""
    right = torch.ones(100, 4)
    once = right.clone()
    once[57] *= 1.2
    tally = tally_of(once, right)
    assert tally.exceeds and (tally.first.frame, tally.first.step) == (57, 5)


def test_tally_exceeds_by_a_value_that_is_not_finite():
    """A NaN exceeds in its frame, and is left out of all other figures."""
    right = torch.ones(100, 4)
    broken = right.clone()
    broken[42, 1] = float("nan")
    tally = tally_of(broken, right)
    assert tally.exceeds and tally.first.frame == 42 and tally.candidate_not_finite == 1
    assert tally.max_error == 0 and tally.as_dict()["elements"] == 399
