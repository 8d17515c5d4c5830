"""``precision.json`` and ``precision.html``: what they contain, and how a browser shows the page."""

import json
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
from support import DEMO, ROOT

from nemotron_npu.checkpoint import published
from nemotron_npu.errors import printable
from nemotron_npu.host.provenance import environment
from nemotron_npu.precision.compare import Precision
from nemotron_npu.precision.report import write_report
from nemotron_npu.precision.summary import format_precision
from nemotron_npu.precision.tolerances import TOLERANCES

SCHEMA = json.loads((ROOT / "nemotron_npu" / "precision" / "report.schema.json").read_text())
CANDIDATE = {
    "model": "demo.nemo",
    "parameters": 1,
    "engine": "native",
    "device": "cpu",
    "device_name": "cpu",
    "dtype": "float32",
    "chunk_ms": 1120,
}


class Page(HTMLParser):
    """The elements, attributes and text of a page; raises AssertionError where tags do not match."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.references, self.content = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.content.append(data)


def test_published_figures_are_those_of_the_published_checkpoint(comparison, tmp_path, monkeypatch):
    """The page shows the guide's figures for its own model only."""
    facts = environment(DEMO)
    assert "Ascend 910B2, guide" not in write_report(comparison, CANDIDATE, facts, tmp_path / "other").read_text()
    monkeypatch.setitem(published.PUBLISHED, facts["model_sha256"], (1, "the published one"))
    assert "Ascend 910B2, guide" in write_report(comparison, CANDIDATE, facts, tmp_path / "its").read_text()


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    return write_report(comparison, CANDIDATE, environment(DEMO), tmp_path_factory.mktemp("report") / "new")


def test_json_follows_its_schema(report):
    """``precision.json`` is valid, and its histograms and traces cover every decision and frame."""
    document = json.loads(report.with_name("precision.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["verdict"] == "PASSED" and document["walks"]["stream, 80 ms"]["decisions"]["token_errors"] == 0
    assert document["environment"]["nemo"] and document["environment"]["torch_npu"] is None
    over_time = document["walks"]["stream, 560 ms"]["error_over_time"]
    assert len(over_time["seconds"]) == len(over_time["percent"]) == document["walks"]["recording"]["frames"]
    for walk_ in document["walks"].values():
        assert sum(walk_["margin_histogram"]["margins"]) == walk_["decisions"]["steps"]


def test_page_is_self_contained_and_begins_with_the_verdict(report):
    """The page has every figure and table, no script, and no reference to anything outside."""
    html = report.read_text()
    page = Page(html)
    assert "script" not in page.tags and "@import" not in html and "url(http" not in html
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    text = " ".join(" ".join(page.content).split())
    assert text.index("PASSED") < text.index("Error by stage") < text.index("Stage by stage")
    for part in ("8 of 8", "Margins against errors", "Error over stream time", "Difference of the log-mel", "layer 4"):
        assert part in text
    assert page.tags.count("svg") == 5 and page.tags.count("image") >= 2
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_page_of_a_failure_names_it_first(demo_native, demo_nemo, clip, tmp_path):
    precision = Precision(
        demo_native, demo_nemo, tolerances=TOLERANCES["float32"].with_changes("joint=0"), chunk_ms=560
    )
    precision.add_recording("<b>&.wav", clip[:32000])
    html = write_report(precision, CANDIDATE, environment(DEMO), tmp_path).read_text()
    text = " ".join(" ".join(Page(html).content).split())
    assert text.index("FAILED") < text.index("First at joint") < text.index("Error by stage")
    assert "<b>&" not in html and "<b>&.wav" in text


@pytest.mark.parametrize("width", [400, 1600])
def test_browser_shows_the_page_without_scrolling_sideways(report, chromium, tmp_path, width):
    probe = "<script>document.title=`${document.documentElement.scrollWidth} of ${innerWidth}`</script></body>"
    page = tmp_path / "page.html"
    page.write_text(report.read_text().replace("</body>", probe))
    dom, log = chromium(page, width)
    title = dom.split("<title>")[1].split("</title>")[0]
    needed, there = map(int, title.split(" of "))
    assert needed <= there and "CONSOLE" not in log


def test_report_takes_names_that_are_not_valid_text(comparison, tmp_path):
    found = {**environment(DEMO), "command": ["/bin/inference.py", "my talk.wav"]}
    page = write_report(comparison, {**CANDIDATE, "model": "demo\udcff.nemo"}, found, tmp_path)
    assert json.loads(page.with_name("precision.json").read_text())["candidate"]["model"] == "demo\udcff.nemo"
    assert "inference.py &#39;my talk.wav&#39;" in page.read_text() and r"demo\udcff.nemo" in page.read_text()


def test_page_has_no_control_characters(comparison, tmp_path):
    """Escape codes in a name do not reach the page."""
    hostile = {**CANDIDATE, "model": "demo\x1b]0;pwned\x07\x9b\u202e$.nemo", "device_name": "\x1b[2J"}
    page = write_report(comparison, hostile, environment(DEMO), tmp_path).read_text()
    assert "pwned" in page and page == printable(page, lines=True)


def test_report_of_a_recording_without_a_frame(demo_native, demo_nemo, tmp_path):
    precision = Precision(demo_native, demo_nemo)
    precision.add_recording("click.wav", np.zeros(80, np.float32))
    page = write_report(precision, CANDIDATE, environment(DEMO), tmp_path)
    jsonschema.validate(json.loads(page.with_name("precision.json").read_text()), SCHEMA)
    assert precision.passed and "click.wav" in " ".join(Page(page.read_text()).content)
    assert "0 of 0 equal" in format_precision(precision, CANDIDATE)


def test_page_shows_file_names_and_words_instead_of_paths(comparison, tmp_path):
    """Neither the folder of the model nor a Python dict is on the page."""
    facts = {**CANDIDATE, "model": "/home/me/models/demo.nemo", "timings": {"load": 0.066}}
    text = " ".join(Page(write_report(comparison, facts, environment(DEMO), tmp_path).read_text()).content)
    assert "demo.nemo" in text and "/home/me" not in text and "load 0.066" in text and "{" not in text.split("}")[-1]
