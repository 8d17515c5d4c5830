"""The figures of the page: labels that do not overlap, colors of the page, unique ids."""

import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from nemotron_npu.precision.document import factor
from nemotron_npu.precision.figures import draw_difference, draw_margins, draw_stages, draw_time
from nemotron_npu.precision.stages import Picture


def stage(name, percent, verdict="PASSED"):
    figures = {"relative_error_percent": percent, "verdict": verdict}
    return {"stage": name, "accumulated": figures, "alone": figures}


def texts(svg):
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_equal_tolerances_share_one_label():
    """Tolerances with the same value have one label, others have one each."""
    stages = [stage("log-mel", 0.1), stage("layer 0", 0.2)]
    same = texts(draw_stages(stages, {"encoder": 3.0, "alone": 3.0}).svg)
    assert "3 %, accumulated and alone" in same and sum("%, " in text for text in same) == 1
    other = texts(draw_stages(stages, {"encoder": 1.0, "alone": 0.0}).svg)
    assert {"1 %, accumulated", "0 %, alone"} <= set(other)


def test_stages_show_failures_and_values_that_are_not_finite():
    """Every point has its value as a tooltip, and a value that is not finite is drawn at the top."""
    stages = [stage("log-mel", 0.0), stage("layer 0", 5.0, "FAILED"), stage("layer 1", None, "FAILED")]
    svg = draw_stages(stages, {"encoder": 1.0, "alone": 0.1}).svg
    assert "<title>layer 0, accumulated: 5 %</title>" in svg and "<title>layer 1, alone: not finite</title>" in svg
    assert "var(--bad)" in svg and "#070707" not in svg


def test_many_layers_have_few_labels():
    """24 layers have eight labels, so that they do not overlap."""
    stages = [stage(f"layer {i}", 0.1) for i in range(24)]
    labels = [text for text in texts(draw_stages(stages, {"encoder": 1.0, "alone": 0.1}).svg) if "layer" in text]
    assert labels == [f"layer {i}" for i in range(0, 24, 3)]


def test_figures_without_differences_say_so():
    """Equal sides have no heat map, an empty time line and no margins."""
    assert "equal" in draw_difference("log-mel", Picture(8, [np.zeros((4, 8), np.float32)]), 1.0).note
    run = {"live": False, "error_over_time": {"seconds": [0.0], "percent": [0.0]}}
    assert draw_time({"recording": run}).svg.startswith("<svg role=")
    assert draw_margins({"edges": [1e-3, 1e-2], "margins": [0, 0, 0], "errors": [0, 0, 0]}) is None


def test_pooled_channels_have_their_own_numbers():
    """The axis of a heat map counts the channels of the stage, not the rows that they are pooled to."""
    rows = np.random.default_rng(0).random((30, 128), np.float32)
    assert "1000" in texts(draw_difference("encoder output", Picture(1024, [rows]), 1.0).svg)


def test_a_small_factor_is_not_rounded_to_1():
    """A decision that is safe by a factor of 1.36 is not called safe by a factor of 1."""
    assert [factor(value) for value in (1.36, 9.9, 47.2, 14736.4)] == ["1.4", "9.9", "47", "14,736"]


def test_figures_of_a_page_have_different_ids():
    """No id occurs twice on a page, since a browser resolves each to the first."""
    picture = Picture(8, [np.random.default_rng(0).random((30, 8), np.float32)])
    drawings = [
        draw_stages([stage("log-mel", 0.1)], {"encoder": 1.0, "alone": 0.1}),
        draw_time({"recording": {"live": False, "error_over_time": {"seconds": [0.0, 0.1], "percent": [0.1, 0.2]}}}),
        draw_margins({"edges": [1e-3, 1e-2], "margins": [0, 3, 1], "errors": [4, 0, 0]}),
        draw_difference("log-mel", picture, 1.0),
        draw_difference("encoder output", picture, 1.0),
    ]
    ids = [name for drawing in drawings for name in re.findall(r' id="([^"]*)"', drawing.svg)]
    assert len(ids) == len(set(ids))
