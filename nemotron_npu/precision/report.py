"""``precision.html``: what ``precision.json`` says, as one page that a person reads at a glance.

Self-contained: styles, drawings and pictures are inside, there is no script, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
import math
import shlex
from html import escape
from pathlib import Path

import numpy as np

from .. import formats
from ..host.files import write_file
from .compare import Precision
from .probes import CACHES

PICTURE_COLUMNS = 640  # of a heat map, at most
WIDTH, HEIGHT = 600, 330  # of a drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 92, 14, 14, 62  # margins of its plot
COLORS = ("--one", "--two", "--three", "--four")

STYLE = """
:root { color-scheme: light dark; --back: #fcfcfb; --card: #ffffff; --ink: #1c1e21; --soft: #5c6370; --line: #dfe2e6;
  --one: #2563a8; --two: #b4570c; --three: #1a7f5a; --four: #8a3d9c; --good: #176b3a; --bad: #b3261e;
  --good-back: #e3f4e8; --bad-back: #fbe6e4; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1d2024; --ink: #e8eaed; --soft: #a2a9b4;
  --line: #373c43; --one: #76b1f5; --two: #f2a25c; --three: #5cc99c; --four: #cf90e0; --good: #7fd6a0; --bad: #ff9c94;
  --good-back: #173423; --bad-back: #43201d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 1.2rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .2rem; }
h2 { font-size: 1.05rem; margin: 0 0 .2rem; }
p { margin: .2rem 0 .7rem; } .soft { color: var(--soft); font-size: .9rem; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
  margin-bottom: 1rem; min-width: 0; }
.verdict { display: inline-block; font-weight: 700; padding: .1rem .7rem; border-radius: 6px; margin-right: .5rem; }
.passed { color: var(--good); background: var(--good-back); }
.failed { color: var(--bad); background: var(--bad-back); }
td.failed, td.passed { background: none; }
.first { border-left: 4px solid var(--bad); padding: .3rem .8rem; background: var(--bad-back); border-radius: 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin-top: .8rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .22rem .7rem .22rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
table.facts td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; max-width: 760px; } svg text { fill: var(--soft); font-size: 15px; }
.grid { stroke: var(--line); stroke-width: 1; } .bound { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 6 5; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .88rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .35rem; }
img.heat { display: block; width: 100%; height: 200px; image-rendering: pixelated; border-radius: 4px; }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: .85rem; }
.scale { display: inline-block; width: 130px; height: .7rem; border-radius: 3px; vertical-align: middle;
  margin: 0 .4rem; }
@media (max-width: 600px) { body { padding: .5rem; } section, header { padding: .7rem; }
  svg text { font-size: 23px; } .wide { display: none; } }
"""


def write_report(precision: Precision, facts: dict, environment: dict, folder: Path) -> Path:
    """Write ``precision.json`` and ``precision.html`` into ``folder``, made if missing; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    document = precision.as_dict(facts, environment)
    write_file(folder / "precision.json", formats.encode(formats.dump(document, indent=1) + "\n"))
    page = folder / "precision.html"
    write_file(page, formats.encode(to_html(document, precision.pictures)))
    return page


def to_html(document: dict, pictures: dict[str, list[np.ndarray]]) -> str:
    """The page of a ``precision.json`` document and of the differences [frames, channels] of its shown recording."""
    walks = document["walks"]
    parts = [_header(document)]
    if walks:
        recording = walks["recording"]
        shown = recording["error_over_time"]["audio"]
        parts.append('<div class="charts">')
        parts += [_by_stage(recording, document["bounds"]), _over_time(walks), _margins(recording)]
        parts += [_heat(stage, blocks, shown, recording) for stage, blocks in pictures.items() if blocks]
    if document["sine"]:
        parts.append(_sine(document))
    if walks:
        parts.append("</div>")
        parts.append(_section("Stage by stage", STAGES_NOTE, _stages(walks["recording"]["stages"])))
        parts += [_streams(walks)] if len(walks) > 1 else []
        parts.append(_section("Recordings", "", _recordings(document["recordings"])))
    parts.append(_section("Bounds", BOUNDS_NOTE, _facts(document["bounds"].items())))
    facts = {**document["candidate"], **document["environment"]}
    facts["command"] = shlex.join(facts["command"])
    parts.append(_section("Measured with", "", _facts(facts.items())))
    title = f"{document['verdict']}: precision of {document['candidate']['device']}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


STAGES_NOTE = (
    "Whole recordings. Accumulated: the candidate's own way from the samples on. Alone: the reference's input given to "
    "the candidate's stage. Error: 100 · Σ|candidate - reference| / Σ|reference|. Layers are numbered as in the "
    "checkpoint."
)
BOUNDS_NOTE = (
    "Percent. mel, encoder (subsampling, layers, caches, output), alone and joint: relative error over a recording, "
    "ten times as much in a single frame; tokens and words: share that differs, over all recordings."
)


def _section(title: str, note: str, body: str) -> str:
    note = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _header(document: dict) -> str:
    candidate, walks = document["candidate"], document["walks"]
    state = document["verdict"].lower()
    count = len(document["recordings"])
    title = (
        f"{candidate['device']} ({candidate['engine']}, {candidate['dtype']}) against stock NeMo on the CPU "
        f"({document['reference']['dtype']})"
    )
    lines = [
        f'<h1><span class="verdict {state}">{document["verdict"]}</span>{escape(title)}</h1>',
        f'<p class="soft">{escape(candidate["device_name"])} · {escape(candidate["model"])} · {count:,} '
        f"recording{'s' if count != 1 else ''}, {document['seconds']:,.1f} s</p>",
    ]
    failures = document["failures"]
    if failures:
        lines.append(f'<p class="first"><b>First at {escape(failures[0]["stage"])}</b>: {_failure(failures[0])}</p>')
        others = failures[1:6]
        if others:
            items = "".join(f"<li>{escape(f['stage'])}: {_failure(f)}</li>" for f in others)
            more = f"<li>and {len(failures) - 6:,} more in precision.json</li>" if len(failures) > 6 else ""
            lines.append(
                f"<details><summary>{len(failures) - 1:,} more behind it</summary><ul>{items}{more}</ul></details>"
            )
    if walks:
        recording = walks["recording"]
        decisions = recording["decisions"]
        outputs = [row["accumulated"] for row in recording["stages"] if row["stage"] == "encoder output"]
        safety = decisions["safety"]
        repeated = [side for side, repeat in recording["repeated"].items() if repeat["stage"]]
        tiles = [  # no output: not one recording filled a frame
            *((f"{_number(f['relative_error_percent'])} %", "error of the encoder output") for f in outputs),
            (_equal_tokens(decisions), "tokens equal"),
            (f"{decisions['word_error_percent']:.2f} %", "word errors against the reference"),
            (
                f"{decisions['undecided']:,} of {decisions['steps']:,}",
                "decisions within reach of the error"
                + (f"; all others safe, the least by {safety:,.0f} times" if safety and safety > 1 else ""),
            ),
            ("0" if not repeated else "differs", "two runs of " + (" and ".join(repeated) or "each side, difference")),
        ]
        if decisions["transcript_words"]:
            own, theirs = decisions["candidate_wer_percent"], decisions["reference_wer_percent"]
            tiles.append((f"{own:.2f} %", f"WER against the transcripts; the reference {theirs:.2f} %"))
        cells = "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles
        )
        lines.append(f'<div class="tiles">{cells}</div>')
    return f"<header>{''.join(lines)}</header>"


def _failure(failure: dict) -> str:
    where = ""
    if failure["time"] is not None:
        where = f" from {failure['time']:.2f} s on"
        where += f" (frame {failure['frame']}, step {failure['step']})" if failure["step"] is not None else ""
    return escape(failure["reason"] + where + (f" in {failure['audio']}" if failure["audio"] else ""))


# ---------------------------------------------------------------- drawings


class _Plot:
    """An SVG with a logarithmic or linear y axis; x and y in the units of the data."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], label: str, log: bool = True):
        self.x, self.y, self.log = x, y, log
        self.parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">']

    def px(self, x: float) -> float:
        low, high = self.x
        return round(LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def py(self, y: float) -> float:
        low, high = self.y
        if self.log:
            y, low, high = (math.log10(max(v, 1e-300)) for v in (y, low, high))
        share = min(1.0, max(0.0, (y - low) / (high - low)))
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def y_axis(self, unit: str) -> None:
        if self.log:
            first, last = (round(math.log10(v)) for v in self.y)
            ticks = [10.0**e for e in range(first, last + 1, max(1, -(-(last - first) // 5)))]
        else:
            step = max(1, round(self.y[1] / 4, -max(0, len(str(round(self.y[1] / 4))) - 1)))
            ticks = [step * i for i in range(int(self.y[1] / step) + 1)]
        for tick in ticks:
            y = self.py(tick)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            self.text(LEFT - 8, y + 5, f"{tick:g}" if not self.log else _tick(tick), "end")
        self.text(0, TOP + 4, unit, "start")

    def x_ticks(self, ticks: list[tuple[float, str]], wide: set[int] = frozenset()) -> None:
        for index, (x, name) in enumerate(ticks):
            at = self.px(x)
            anchor = "end" if at > WIDTH - RIGHT - 20 else "middle"
            self.text(at, HEIGHT - BOTTOM + 24, name, anchor, "wide" if index in wide else "")

    def x_label(self, name: str) -> None:
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, name, "middle")

    def text(self, x: float, y: float, text: str, anchor: str, css: str = "") -> None:
        css = f' class="{css}"' if css else ""
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{css}>{escape(text)}</text>')

    def line(self, points: list[tuple[float, float]], color: str) -> None:
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="var({color})" stroke-width="2"/>')

    def dot(self, x: float, y: float, color: str, title: str, failed: bool) -> None:
        ring = ' stroke="var(--bad)" stroke-width="3"' if failed else ""
        radius = 6 if failed else 4
        self.parts.append(
            f'<circle cx="{self.px(x)}" cy="{self.py(y)}" r="{radius}" fill="var({color})"{ring}>'
            f"<title>{escape(title)}</title></circle>"
        )

    def bound(self, y: float, name: str) -> None:
        at = self.py(y)
        self.parts.append(f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        self.text(LEFT + 4, at + 17, name, "start")

    def bar(self, x: tuple[float, float], y: float, color: str, title: str) -> None:
        left, top = self.px(x[0]), self.py(y)
        width, height = round(self.px(x[1]) - left - 1, 1), round(HEIGHT - BOTTOM - top, 1)
        self.parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" '
            f'fill="var({color})" fill-opacity=".75"><title>{escape(title)}</title></rect>'
        )

    def svg(self) -> str:
        return "".join(self.parts) + "</svg>"


def _legend(names: list[str], colors=COLORS) -> str:
    items = (
        f'<span><i style="background:var({c})"></i>{escape(n)}</span>' for n, c in zip(names, colors, strict=False)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def _decades(values) -> tuple[float, float]:
    """Powers of ten around what is finite and over 0."""
    good = [v for v in values if v is not None and math.isfinite(v) and v > 0]
    if not good:
        return 1e-8, 1.0
    low, high = math.floor(math.log10(min(good))), math.ceil(math.log10(max(good)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _by_stage(walk: dict, bounds: dict) -> str:
    rows = [row for row in walk["stages"] if not row["stage"].startswith(CACHES)]
    short = {"log-mel": "mel", "subsampling": "sub", "encoder output": "out", "prediction network": "pred"}
    errors = [[row[way] and row[way]["relative_error_percent"] for row in rows] for way in ("accumulated", "alone")]
    plot = _Plot(
        (-0.5, len(rows) - 0.5),
        _decades([*errors[0], *errors[1], bounds["encoder"], bounds["alone"]]),
        "Relative error by stage, accumulated and alone",
    )
    plot.y_axis("%")
    plot.bound(bounds["encoder"], f"{bounds['encoder']:g} %, accumulated")
    plot.bound(bounds["alone"], f"{bounds['alone']:g} %, alone")
    names = [short.get(row["stage"], row["stage"].replace("layer ", "")) for row in rows]
    every = max(1, -(-len(rows) // 12))
    ends = {"mel", "joint"} if every > 1 else {"mel", "sub", "out", "pred", "joint"}
    ticks, wide = [], set()
    for index, name in enumerate(names):
        if name in ends or (name.isdigit() and int(name) % every == 0):
            if name in ("sub", "out", "pred", "mel"):
                wide.add(len(ticks))
            ticks.append((index, name))
    plot.x_ticks(ticks, wide)
    plot.x_label("log-mel, subsampling, layers, output, search")
    for way, values, color in zip(("accumulated", "alone"), errors, COLORS, strict=False):
        for a, b in zip(range(len(values)), range(1, len(values)), strict=False):
            if values[a] and values[b]:
                plot.line([(a, values[a]), (b, values[b])], color)
        for index, value in enumerate(values):
            row = rows[index]
            if value:
                title = f"{row['stage']}, {way}: {_number(value)} %"
                plot.dot(index, value, color, title, row[way]["verdict"] == "FAILED")
            elif value is None and row[way]:
                plot.dot(index, plot.y[1], color, f"{row['stage']}, {way}: not finite", True)
    note = (
        '<p class="soft">Relative error, whole recordings. Dashed: the bounds of both. A red ring: over its bound.</p>'
    )
    legend = _legend(["accumulated", "alone, given the reference's input"])
    return f"<section><h2>Error by stage</h2>{note}{legend}{plot.svg()}</section>"


def _over_time(walks: dict) -> str:
    live = {name: walk["error_over_time"] for name, walk in walks.items() if walk["live"]}
    series = live or {"recording": walks["recording"]["error_over_time"]}
    audio = next(iter(series.values()))["audio"]
    end = max([*(t for s in series.values() for t in s["seconds"]), 0.08])
    plot = _Plot((0, end), _decades([v for s in series.values() for v in s["percent"]]), "Error over stream time")
    plot.y_axis("%")
    plot.x_ticks(
        [(end * i / 4, f"{end * i / 4:.0f} s" if end > 20 else f"{end * i / 4:.1f} s") for i in range(5)], {1, 3}
    )
    plot.x_label("stream time")
    for (_name, s), color in zip(series.items(), COLORS, strict=False):
        plot.line([(t, v) for t, v in zip(s["seconds"], s["percent"], strict=True) if v], color)
    note = (
        '<p class="soft">Relative error of the encoder output by frame, '
        + ("step by step as a live stream: does it drift? " if live else "")
        + f"{escape(audio)}</p>"
    )
    return f"<section><h2>Error over stream time</h2>{note}{_legend(list(series))}{plot.svg()}</section>"


def _margins(walk: dict) -> str:
    histogram = walk["margin_histogram"]
    edges, series = histogram["edges"], {"margin": histogram["margins"], "largest error": histogram["errors"]}
    used = [i for counts in series.values() for i, n in enumerate(counts) if n]
    if not used:
        return ""
    first, last = max(0, min(used) - 1), min(len(edges), max(used) + 1)
    exponents = [math.log10(edge) for edge in edges]
    width = exponents[1] - exponents[0]
    low = exponents[0] + width * (first - 1)
    high = exponents[0] + width * last
    top = max(max(counts) for counts in series.values())
    plot = _Plot((low, high), (0, top), "Margins of the decisions and errors of the joint network", log=False)
    plot.y_axis("")
    marks = range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 6)))
    plot.x_ticks([(e, _tick(10.0**e)) for e in marks], set(range(1, len(marks), 2)))
    plot.x_label("nats")
    for (name, counts), color in zip(series.items(), ("--one", "--two"), strict=True):
        for index, count in enumerate(counts):
            if count:
                right = exponents[0] + width * index
                plot.bar(
                    (right - width, right), count, color, f"{name} up to {10**right:.2g} nats: {count:,} decisions"
                )
    note = (
        "Every decision of the reference's search: by how much its choice is ahead of the next, and how far off the "
        "candidate's log-probabilities are there. A choice can only differ where twice the error reaches its margin."
    )
    legend = _legend(["margin of the reference's choice", "largest error of the joint network"])
    return f'<section><h2>Margins against errors</h2><p class="soft">{note}</p>{legend}{plot.svg()}</section>'


def _heat(stage: str, blocks: list[np.ndarray], audio: str, walk: dict) -> str:
    picture = np.concatenate(blocks).T  # [channels, frames]
    size = -(-picture.shape[1] // PICTURE_COLUMNS)
    if size > 1:
        padded = np.pad(picture, ((0, 0), (0, -picture.shape[1] % size)))
        picture = padded.reshape(len(picture), -1, size).max(2)
    title = f"Difference of the {stage}"
    note = f'<p class="soft">|candidate - reference| over time, low channels at the bottom. {escape(audio)}</p>'
    largest = float(picture.max())
    if not largest:
        return f"<section><h2>{title}</h2>{note}<p>None: equal to the last bit.</p></section>"
    low = max(float(np.quantile(picture[picture > 0], 0.02)), largest * 1e-4)
    data = _png(np.log10(np.maximum(picture, low)), math.log10(low), math.log10(largest))
    bar = _png(np.linspace(0, 1, 128)[None], 0.0, 1.0)
    return (
        f"<section><h2>{title}</h2>{note}"
        f'<img class="heat" alt="{title}: at most {largest:.2g}" src="{data}">'
        f'<div class="ends"><span>0 s</span><span>{low:.1g}<img class="scale" alt="to" src="{bar}">{largest:.2g}</span>'
        f"<span>{(walk['error_over_time']['seconds'] or [0])[-1]:.1f} s</span></div></section>"
    )


def _png(values: np.ndarray, low: float, high: float) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, values, cmap="magma", vmin=low, vmax=max(high, low + 1e-9), origin="lower", format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------- tables


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Cells are text; the cell of a verdict is coloured."""

    def cell(value: str) -> str:
        css = f' class="{value.lower()}"' if value in ("PASSED", "FAILED") else ""
        return f"<td{css}>{escape(value)}</td>"

    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(items) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(k))}</td><td>{escape('-' if v is None else str(v))}</td></tr>" for k, v in items
    )
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _stages(stages: list[dict]) -> str:
    rows = []
    for row in stages:
        for way in ("accumulated", "alone"):
            f = row[way]
            if f:
                rows.append([row["stage"] if way == "accumulated" else "", way, *_figures(f), f["verdict"]])
    return _table(["stage", "", *FIGURES, "verdict"], rows)


FIGURES = (
    ["error %", "worst frame %", "MAE", "max", "MSE", "SNR dB", "cosine"]
    + ["candidate's range", "reference's range", "not finite"]
)  # fmt: skip


def _figures(f: dict) -> list[str]:
    numbers = [_number(f[key]) for key in ("relative_error_percent", "worst_row_percent", "mae", "max_error", "mse")]
    snr = "∞" if f["snr_db"] is None or math.isinf(f["snr_db"]) else f"{f['snr_db']:.1f}"
    ranges = [f"{_number(f[key][0])} .. {_number(f[key][1])}" for key in ("candidate_range", "reference_range")]
    broken = f"{f['candidate_not_finite']:,} / {f['reference_not_finite']:,}"
    return [*numbers, snr, f"{f['cosine']:.9f}", *ranges, broken]


def _streams(walks: dict) -> str:
    rows = []
    for name, walk in walks.items():
        if not walk["live"]:
            continue
        stages = {row["stage"]: row["accumulated"]["relative_error_percent"] for row in walk["stages"]}
        caches = {s: e for s, e in stages.items() if s.startswith(CACHES)}
        cache = max(caches, key=lambda s: caches[s] if caches[s] is not None else math.inf) if caches else None
        d = walk["decisions"]
        rows.append(
            [
                name,
                _number(stages.get("encoder output")),
                _number(caches[cache]) if cache else "-",
                cache or "-",
                _equal_tokens(d),
                f"{d['word_error_percent']:.2f}",
                f"{d['undecided']:,} of {d['steps']:,}",
                walk["verdict"],
            ]
        )
    head = ["", "encoder output, error %", "worst cache, error %", "which", "tokens equal", "word errors %"]
    note = "Step by step, one chunk at a time, with what each layer remembers compared after every step."
    return _section("Live streams", note, _table([*head, "decisions within reach", "verdict"], rows))


def _recordings(recordings: list[dict]) -> str:
    rows = []
    for r in recordings[:500]:
        walk = r["walks"]["recording"]
        d = walk["decisions"]
        first = f"{r['failures'][0]['stage']}" if r["failures"] else "-"
        rows.append(
            [
                r["audio"],
                f"{r['seconds']:.2f}",
                _number(walk["encoder_output"]["relative_error_percent"]),
                _equal_tokens(d),
                _number(d["smallest_margin"]),
                _number(d["largest_error"]),
                first,
                r["verdict"],
            ]
        )
    head = ["", "s", "encoder output, error %", "tokens equal", "smallest margin", "largest joint error", "first at"]
    return _table([*head, "verdict"], rows)


def _sine(document: dict) -> str:
    s, device = document["sine"], document["candidate"]["device"]
    ranges = [
        f"{low} .. {high}" if low is None else f"{low:.6f} .. {high:.6f}"
        for low, high in (s["device_range"], s["cpu_range"])
    ]
    rows = [
        ("Preprocessor MAE", _number(s["preprocessor"]["mae"])),
        ("Preprocessor Max Error", _number(s["preprocessor"]["max_error"])),
        ("Encoder MSE", _number(s["encoder"]["mse"])),
        ("Encoder MAE", _number(s["encoder"]["mae"])),
        ("Max Absolute Error", _number(s["encoder"]["max_error"])),
        ("Relative Error", f"{_number(s['encoder']['relative_error_percent'])} %"),
        (f"Output range, {device}", ranges[0]),
        ("Output range, cpu", ranges[1]),
        ("cpu against cpu, max", _number(s["cpu_against_cpu"]["max_error"])),
        ("Verdict", s["verdict"]),
    ]
    return _section("1 s sine of 440 Hz", "The write-up's table.", _facts(rows))


def _equal_tokens(decisions: dict) -> str:
    return f"{decisions['equal_tokens']:,} of {decisions['reference_tokens']:,}"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return "0" if value == 0 else f"{value:.3g}"


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:g}" if 0.01 <= value < 1e5 else f"1e{round(math.log10(value))}"
