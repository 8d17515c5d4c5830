"""``precision.html``: the content of ``precision.json`` as one page with figures.

The page is self-contained: styles and figures are inside, there is no script, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import math
import os
import shlex
from pathlib import PurePath
from typing import Any

import jinja2

from ..checkpoint.published import PUBLISHED as PUBLISHED_CHECKPOINTS
from ..errors import printable
from .document import SWITCHES, describe, factor
from .figures import Drawing, draw_difference, draw_margins, draw_stages, draw_time
from .guide import PUBLISHED, PUBLISHED_HEAD
from .probes import CACHES
from .stages import Picture

MAX_RECORDINGS = 500  # rows of the table of recordings
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), autoescape=True, undefined=jinja2.StrictUndefined
)
LABELS = {
    "device_name": "device name",
    **SWITCHES,
    "device_settings": "device settings",
    "chunk_ms": "chunk, ms",
    "boost_words": "boosted phrases",
    "timings": "seconds",
    "torch_npu": "torch_npu",
    "cann": "CANN",
    "npu_driver": "NPU driver",
    "nemo": "NeMo",
    "model_sha256": "SHA-256 of the model",
    "python": "Python",
}
STAGE_HEAD = (
    *("stage", "", "verdict", "error %", "worst frame %", "MAE", "max", "MSE", "SNR dB", "cosine"),
    *("candidate's range", "reference's range", "not finite"),
)
STREAM_HEAD = (
    *("", "encoder output, error %", "worst cache, error %", "cache", "tokens equal", "word errors %"),
    *("decisions within reach", "verdict"),
)
RECORDING_HEAD = (
    *("", "s", "encoder output, error %", "tokens equal", "smallest margin", "largest joint error", "first at"),
    "verdict",
)


def render(document: dict, pictures: dict[str, Picture]) -> str:
    """Return the page of a ``precision.json`` document and of the differences in its figures."""
    runs, candidate = document["walks"], document["candidate"]
    count = len(document["recordings"])
    recordings = "recording" if count == 1 else "recordings"
    context: dict[str, Any] = {
        "verdict": document["verdict"],
        "candidate": candidate,
        "title": f"{describe(candidate)} against stock NeMo on the CPU ({document['reference']['dtype']})",
        "subtitle": f"{candidate['device_name']} · {_file_name(candidate['model'])} · {count:,} {recordings}, "
        f"{document['seconds']:,.1f} s",
        "explanation": document["explanation"],
        "failures": [{"stage": one["stage"], "text": _failure(one)} for one in document["failures"]],
        "tiles": _tiles(runs["recording"]) if runs else [],
        "figures": _figures(document, pictures),
        "sine": _sine(document) if document["sine"] else None,
        "stages": _table(STAGE_HEAD, _stages(runs["recording"]["stages"])) if runs else None,
        "streams": _table(STREAM_HEAD, [_stream(name, run) for name, run in runs.items() if run["live"]]),
        "recordings": _table(RECORDING_HEAD, [_recording(one) for one in document["recordings"][:MAX_RECORDINGS]]),
        "bounds": list(document["bounds"].items()),
        "environment": _environment({**candidate, **document["environment"]}),
    }
    return printable(TEMPLATES.get_template("report.html.j2").render(context), lines=True) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> dict | None:
    return {"head": head, "rows": rows} if rows else None


def _figures(document: dict, pictures: dict[str, Picture]) -> list[Drawing]:
    runs = document["walks"]
    if not runs:
        return []
    recording = runs["recording"]
    seconds = (recording["error_over_time"]["seconds"] or [0])[-1]
    of_shown = [draw_difference(stage, picture, seconds) for stage, picture in pictures.items()]
    time = draw_time(runs)
    audio = _file_name(recording["error_over_time"]["audio"])
    for drawing in (time, *of_shown):
        drawing.note += f" {audio}"
    margins = draw_margins(recording["margin_histogram"])
    stages = draw_stages(recording["stages"], document["bounds"])
    return [stages, time, *([margins] if margins else []), *of_shown]


def _tiles(run: dict) -> list[tuple[str, str]]:
    """Return (value, label) of the most important figures; a recording without a frame has no encoder output."""
    d = run["decisions"]
    outputs = [row["accumulated"] for row in run["stages"] if row["stage"] == "encoder output"]
    reach = "decisions within reach of the error"
    if d["safety"] and d["safety"] > 1 and math.isfinite(d["safety"]):
        reach += f"; the others are safe by a factor of {factor(d['safety'])} or more"
    differing = [side for side, repeat in run["repeated"].items() if repeat["stage"]]
    sides = " and ".join(differing) or "each side, difference"
    tiles = [
        *((f"{_number(f['relative_error_percent'])} %", "error of the encoder output") for f in outputs),
        (_equal_tokens(d), "tokens equal"),
        (f"{d['word_error_percent']:.2f} %", "word errors against the reference"),
        (f"{d['undecided']:,} of {d['steps']:,}", reach),
        ("differs" if differing else "0", f"two runs of {sides}"),
    ]
    if d["transcript_words"]:
        for name, label in (("written_wer", "as written"), ("wer", "normalized")):
            own, theirs = d[f"candidate_{name}_percent"], d[f"reference_{name}_percent"]
            tiles.append((f"{own:.2f} %", f"WER against the transcripts, {label}; the reference {theirs:.2f} %"))
    return tiles


def _stages(stages: list[dict]) -> list[tuple[str, ...]]:
    rows = []
    for row in stages:
        for way in ("accumulated", "alone"):
            figures = row[way]
            if figures:
                name = row["stage"] if way == "accumulated" else ""
                rows.append((name, way, figures["verdict"], *_stage_figures(figures)))
    return rows


def _stage_figures(f: dict) -> list[str]:
    names = ("relative_error_percent", "worst_row_percent", "mae", "max_error", "mse")
    snr = "∞"
    if f["snr_db"] is not None and math.isfinite(f["snr_db"]):
        snr = f"{f['snr_db']:.1f}"
    ranges = [f"{_number(low)} .. {_number(high)}" for low, high in (f["candidate_range"], f["reference_range"])]
    broken = f"{f['candidate_not_finite']:,} / {f['reference_not_finite']:,}"
    return [*(_number(f[name]) for name in names), snr, f"{f['cosine']:.9f}", *ranges, broken]


def _stream(name: str, run: dict) -> tuple[str, ...]:
    errors = {row["stage"]: row["accumulated"]["relative_error_percent"] for row in run["stages"]}
    caches = {stage: math.inf if e is None else e for stage, e in errors.items() if stage.startswith(CACHES)}
    worst = max(caches, key=lambda stage: caches[stage]) if caches else None
    d = run["decisions"]
    return (
        name,
        _number(errors.get("encoder output")),
        _number(caches[worst]) if worst else "-",
        worst or "-",
        _equal_tokens(d),
        f"{d['word_error_percent']:.2f}",
        f"{d['undecided']:,} of {d['steps']:,}",
        run["verdict"],
    )


def _recording(recording: dict) -> tuple[str, ...]:
    run = recording["walks"]["recording"]
    d = run["decisions"]
    return (
        _file_name(recording["audio"]),
        f"{recording['seconds']:.2f}",
        _number(run["encoder_output"]["relative_error_percent"]),
        _equal_tokens(d),
        _number(d["smallest_margin"]),
        _number(d["largest_error"]),
        recording["failures"][0]["stage"] if recording["failures"] else "-",
        recording["verdict"],
    )


def _sine(document: dict) -> dict | None:
    """Return the guide's table: this run, and what is published if this is the published checkpoint."""
    s, device = document["sine"], document["candidate"]["device"]
    rows: list[tuple[str, ...]] = [
        ("Preprocessor MAE", _number(s["preprocessor"]["mae"])),
        ("Preprocessor Max Error", _number(s["preprocessor"]["max_error"])),
        ("Encoder MSE", _number(s["encoder"]["mse"])),
        ("Encoder MAE", _number(s["encoder"]["mae"])),
        ("Max Absolute Error", _number(s["encoder"]["max_error"])),
        ("Relative Error", f"{_number(s['encoder']['relative_error_percent'])} %"),
        (f"Output range, {device}", " .. ".join(_number(value, ".6f") for value in s["device_range"])),
        ("Output range, cpu (NeMo)", " .. ".join(_number(value, ".6f") for value in s["cpu_range"])),
        ("cpu against cpu, max", _number(s["cpu_against_cpu"]["max_error"])),
        ("Verdict", s["verdict"]),
    ]
    if document["environment"]["model_sha256"] not in PUBLISHED_CHECKPOINTS:
        return _table(("", "this run"), rows)
    return _table(("", "this run", *PUBLISHED_HEAD), [(*row, *PUBLISHED.get(row[0], ("", "", ""))) for row in rows])


def _environment(facts: dict) -> list[tuple[str, str]]:
    """Return (label, text) of everything that was measured with, in words."""
    texts = {**facts, "model": _file_name(facts["model"])}
    program, *arguments = facts.get("command") or ["-"]
    texts["command"] = shlex.join([_file_name(program), *arguments])
    return [(LABELS.get(name, name.replace("_", " ")), _text(value)) for name, value in texts.items()]


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _failure(failure: dict) -> str:
    text = failure["reason"]
    if failure["time"] is not None:
        text += f" from {failure['time']:.2f} s on"
        if failure["step"] is not None:
            text += f" (frame {failure['frame']}, step {failure['step']})"
    return f"{text} in {_file_name(failure['audio'])}" if failure["audio"] else text


def _file_name(path: str) -> str:
    return PurePath(path).name or path


def _equal_tokens(decisions: dict) -> str:
    return f"{decisions['equal_tokens']:,} of {decisions['reference_tokens']:,}"


def _number(value: float | None, form: str = ".3g") -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return "0" if value == 0 else format(value, form)
