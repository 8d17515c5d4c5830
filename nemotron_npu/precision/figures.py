"""The figures of ``precision.html``: SVG drawn by matplotlib, whose colors follow the page's light or dark style."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .probes import CACHES
from .stages import Picture

WIDTH, HEIGHT, HEAT_HEIGHT = 480, 290, 210  # in units of the SVG, which the page scales
FONT_SIZE = 13
PICTURE_COLUMNS = 640  # maximum width of a heat map
LAYER_LABELS = 8  # maximum number of layers with a label
SERIES = ("--one", "--two", "--three", "--four")
COLORS = {  # placeholders, which become the page's CSS variables
    "--one": "#010101",
    "--two": "#020202",
    "--three": "#030303",
    "--four": "#040404",
    "--soft": "#050505",
    "--line": "#060606",
    "--bad": "#070707",
}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": FONT_SIZE,
    "text.color": COLORS["--soft"],
    "axes.labelcolor": COLORS["--soft"],
    "axes.edgecolor": COLORS["--line"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": COLORS["--line"],
    "xtick.color": COLORS["--line"],
    "ytick.color": COLORS["--line"],
    "xtick.labelcolor": COLORS["--soft"],
    "ytick.labelcolor": COLORS["--soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.transparent": True,
}


@dataclass
class Drawing:
    """One figure of the page."""

    title: str
    note: str
    svg: str
    legend: list[tuple[str, str]] = field(default_factory=list)
    """(CSS variable of the color, text)."""


def draw_stages(stages: list[dict], bounds: dict[str, float]) -> Drawing:
    """Draw the relative error of every stage but the caches, accumulated and alone, with both tolerances."""
    rows = [row for row in stages if not row["stage"].startswith(CACHES)]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "stages"}):
        figure, axes = _axes("%")
        errors = [f["relative_error_percent"] for row in rows for f in (row["accumulated"], row["alone"]) if f]
        low, high = _decades([*errors, bounds["encoder"], bounds["alone"]])
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        for way, color in (("accumulated", "--one"), ("alone", "--two")):
            _draw_stage_errors(axes, rows, way, color)
        _draw_tolerances(axes, bounds["encoder"], bounds["alone"])
        ticks = _stage_ticks([row["stage"] for row in rows])
        axes.set_xticks([index for index, _ in ticks], [name for _, name in ticks], rotation=90)
        note = "Relative error, whole recordings. Dashed lines: tolerances. Red ring: the stage exceeds its tolerance."
        legend = [("--one", "accumulated"), ("--two", "alone, given the reference's input")]
        return Drawing("Error by stage", note, _svg(figure, "Relative error by stage, accumulated and alone"), legend)


def _draw_stage_errors(axes: Axes, rows: list[dict], way: str, color: str) -> None:
    top = axes.get_ylim()[1]
    values = [row[way]["relative_error_percent"] if row[way] else math.nan for row in rows]
    shown = [value if value is not None and value > 0 else math.nan for value in values]
    axes.plot(range(len(rows)), shown, color=COLORS[color])
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        if not row[way] or value == 0:
            continue
        broken = value is None or not math.isfinite(value)
        failed = broken or row[way]["verdict"] == "FAILED"
        text = "not finite" if broken else f"{value:.3g} %"
        axes.plot(
            [index],
            [top if broken else value],
            marker="o",
            markersize=9 if failed else 6,
            color=COLORS[color],
            markeredgecolor=COLORS["--bad" if failed else color],
            markeredgewidth=2.5 if failed else 0,
            clip_on=False,
            gid=f"tip:{row['stage']}, {way}: {text}",
        )


def _draw_tolerances(axes: Axes, accumulated: float, alone: float) -> None:
    """Draw both tolerances; equal ones share a label, and others have theirs at opposite ends."""
    labels = [(accumulated, "accumulated", 0.01, "left"), (alone, "alone", 0.99, "right")]
    if accumulated == alone:
        labels = [(accumulated, "accumulated and alone", 0.01, "left")]
    low = axes.get_ylim()[0]
    for value, name, x, align in labels:
        y = max(value, low)  # a logarithmic axis has no 0
        axes.axhline(y, color=COLORS["--bad"], linestyle="--", linewidth=1.3)
        axes.annotate(
            f"{value:g} %, {name}",
            (x, y),
            (0, -3 if y > low else 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha=align,
            va="top" if y > low else "bottom",
        )


def _stage_ticks(names: list[str]) -> list[tuple[int, str]]:
    """Return (position, label) of the stages; of many layers only some have a label."""
    short = {"encoder output": "output", "prediction network": "prediction"}
    layers = sum(name.startswith("layer ") for name in names)
    every = max(1, math.ceil(layers / LAYER_LABELS))
    ticks = []
    for index, name in enumerate(names):
        number = name.removeprefix("layer ")
        if not number.isdigit() or int(number) % every == 0:
            ticks.append((index, short.get(name, name)))
    return ticks


def draw_time(runs: dict[str, dict]) -> Drawing:
    """Draw the error of the encoder output over time, of each stream, or of the whole recording without streams."""
    live = {name: run["error_over_time"] for name, run in runs.items() if run["live"]}
    series = live or {"recording": runs["recording"]["error_over_time"]}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "time"}):
        figure, axes = _axes("%")
        low, high = _decades(value for one in series.values() for value in one["percent"])
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        legend = []
        for color, (name, one) in zip(SERIES, series.items(), strict=False):
            values = [value if value is not None and value > 0 else math.nan for value in one["percent"]]
            axes.plot(one["seconds"], values, color=COLORS[color], linewidth=1.5)
            legend.append((color, name))
        axes.set_xlabel("time in s")
        question = "step by step as a live stream: does it drift?" if live else "of the whole recording."
        note = f"Relative error of the encoder output by frame, {question}"
        return Drawing("Error over stream time", note, _svg(figure, "Error of the encoder output over time"), legend)


def draw_margins(histogram: dict[str, list]) -> Drawing | None:
    """Draw the histograms of margins and errors; None without decisions."""
    exponents = np.log10(histogram["edges"])
    width = exponents[1] - exponents[0]
    rights = np.append(exponents, exponents[-1] + width)  # of each bin
    series = (("margin", "--one", histogram["margins"]), ("largest error", "--two", histogram["errors"]))
    if not any(any(counts) for _, _, counts in series):
        return None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "margins"}):
        figure, axes = _axes("decisions")
        for name, color, counts in series:
            for right, count in zip(rights, counts, strict=True):
                if count:
                    tip = f"tip:{name} up to {10**right:.2g} nats: {count:,} decisions"
                    axes.bar(right - width, count, 0.95 * width, align="edge", color=COLORS[color], alpha=0.75)
                    axes.patches[-1].set_gid(tip)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: _power(10.0**value))
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axes.set_xlabel("nats")
        note = (
            "Every decision of the reference's decoding: the margin of its choice over the next best one, and the "
            "largest error of the candidate's log-probabilities. A choice can differ only where twice the error "
            "reaches its margin."
        )
        legend = [("--one", "margin of the reference's choice"), ("--two", "largest error of the joint network")]
        svg = _svg(figure, "Margins of the decisions and errors of the joint network")
        return Drawing("Margins against errors", note, svg, legend)


def draw_difference(stage: str, difference: Picture, seconds: float) -> Drawing:
    """Draw |candidate - reference| as a heat map over time."""
    picture = _shrink(np.concatenate(difference.blocks).T)  # [rows, frames]
    title = f"Difference of the {stage}"
    note = "|candidate - reference| over time."
    largest = float(picture.max())
    if not largest:
        return Drawing(title, "None: both are equal to the last bit.", "")
    low = max(float(np.quantile(picture[picture > 0], 0.02)), largest * 1e-4)
    norm = LogNorm(low, max(largest, low * 1.001))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": stage}):
        figure, axes = _axes("channel", HEAT_HEIGHT)
        axes.grid(visible=False)
        image = axes.imshow(
            np.maximum(picture, low),
            cmap="magma",
            norm=norm,
            origin="lower",
            aspect="auto",
            interpolation="none",
            extent=(0, max(seconds, 1e-3), 0, difference.channels),
        )
        bar = figure.colorbar(image, ax=axes, pad=0.02, format=lambda value, _: _power(value))
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
        bar.minorticks_off()
        axes.set_xlabel("time in s")
        return Drawing(title, note, _svg(figure, f"{title}: at most {largest:.2g}"))


def _shrink(picture: np.ndarray) -> np.ndarray:
    """Reduce the columns to ``PICTURE_COLUMNS`` by the maximum of neighbors."""
    size = math.ceil(picture.shape[1] / PICTURE_COLUMNS)
    if size <= 1:
        return picture
    padded = np.pad(picture, ((0, 0), (0, -picture.shape[1] % size)))
    return padded.reshape(len(picture), -1, size).max(2)


# ---------------------------------------------------------------- matplotlib


def _axes(unit: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(unit)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """Return the SVG element for the page, with a title for readers and CSS variables as colors."""
    for axes in figure.axes:
        axes.minorticks_off()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=144, metadata={"Date": None, "Creator": None, "Title": label})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r'<(g|path) id="tip:([^"]*)"([^>]*)>', r"<\1\3>", text)
    text = re.sub(r'<(\w+) id="[\w.]+_\d+"', r"<\1", text)  # the ids of a page have to be unique
    for name, color in COLORS.items():
        text = text.replace(color, f"var({name})")
    return text.replace("<svg ", '<svg role="img" ', 1).strip()


def _decades(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the powers of ten around the positive finite values."""
    good = [value for value in values if value is not None and math.isfinite(value) and value > 0]
    if not good:
        return 1e-8, 1.0
    low, high = math.floor(math.log10(min(good))), math.ceil(math.log10(max(good)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _power(value: float) -> str:
    if value == 0 or 0.01 <= value < 1e5:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-")
