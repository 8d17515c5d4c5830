"""``--precision_compare`` and ``--report`` on the command line."""

import json
import re

from support import CLIP, CLIP_WORDS, POISON, poison_the_encoder

from nemotron_npu.precision.compare import Precision
from nemotron_npu.recognizer import Recognizer


def test_speech_is_compared_stage_by_stage_with_report(cli, tmp_path, stereo_mp3):
    """Speech is compared stage by stage, in the table and in the report."""
    report = tmp_path / "new" / "report"
    options = ["--device", "cpu", "--precision_compare", "--chunk_ms", 560, "--report", report]
    code, out, err = cli(CLIP, stereo_mp3, *options)
    assert code == 0 and out.count(CLIP_WORDS) == 2, err
    assert out.index("Precision of cpu against cpu: 1 s sine of 440 Hz") < out.index(CLIP_WORDS)
    table = out[out.index("NeMo (cpu, float32): 2 recordings") :]
    for line in (r"layer 4 .* 1\d\d\.\d\n", r"tokens +16 of 16 equal\n +smallest margin", r"words +16 of 16 equal",
                 r"stream, 560 ms (.*\n){1,2} +16 of 16 tokens equal", r"two runs +cpu equal, NeMo on the cpu equal",
                 r"Verdict +PASSED"):  # fmt: skip
        assert re.search(line, table), (line, table)
    assert max(map(len, table.splitlines())) <= 80, table
    figures = json.loads((report / "precision.json").read_text())
    assert [r["audio"] for r in figures["recordings"]] == [str(CLIP), str(stereo_mp3)]
    assert {r["verdict"] for r in figures["recordings"]} == {"PASSED"}
    assert figures["sine"]["cpu_against_cpu"] == {"mse": 0, "mae": 0, "max_error": 0, "relative_error_percent": 0}
    assert figures["environment"]["command"] and figures["candidate"]["parameters"] > 1e6
    assert "PASSED" in (report / "precision.html").read_text() and str(report) in err


def test_nemo_compared_with_nemo_is_bitwise_equal(cli, tiny, tmp_path):
    """NeMo compared with NeMo on the CPU has no error at all."""
    options = ["--engine", "nemo", "--device", "cpu", "--precision_compare", "--chunk_ms", 1120, "--report", tmp_path]
    assert cli("--model_path", tiny, *options)[0] == 0
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert figures["candidate"]["engine"] == "nemo"
    assert figures["sine"]["encoder"]["max_error"] == figures["sine"]["preprocessor"]["max_error"] == 0
    for walk in figures["walks"].values():
        assert all(row["accumulated"]["max_error"] == 0 for row in walk["stages"])


def test_comparison_without_audio_takes_sine_and_clip(cli):
    """Without AUDIO the sine and the bundled clip are compared."""
    options = ["--device", "cpu", "--precision_compare", "--chunk_ms", 1120]
    code, out, _ = cli(*options)
    assert code == 0 and "Precision of cpu against cpu: 1 s sine of 440 Hz" in out and CLIP_WORDS not in out
    assert out.index("Verdict                 PASSED (< 1 %)") < out.index("NeMo (cpu, float32): digits.wav, 6.8 s")
    code, out, err = cli(*options, "--output_format", "json")
    sine, clip = map(json.loads, out.splitlines())
    assert sine["precision_compare"]["verdict"] == clip["precision_compare"]["verdict"] == "PASSED"
    assert clip["text"] == CLIP_WORDS and clip["precision_compare"]["stages"][0]["stage"] == "log-mel"
    assert "against NeMo (cpu, float32)" in err


def test_failed_comparison_exits_with_1(cli, tiny, monkeypatch, tmp_path):
    """A comparison that fails is FAILED in table, JSON and report, with exit code 1."""
    encode = Recognizer.encode

    def spoiled(self, features, lengths):
        encoded, frames = encode(self, features, lengths)
        return encoded * 1.05, frames

    monkeypatch.setattr(Recognizer, "encode", spoiled)
    arguments = ["--model_path", tiny, "--device", "cpu", "--precision_compare", "--chunk_ms", 1120]
    code, out, _ = cli(*arguments, "--report", tmp_path)
    assert code == 1 and "FAILED: relative error 5.0" in out
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert figures["verdict"] == figures["sine"]["verdict"] == "FAILED"
    assert "FAILED" in (tmp_path / "precision.html").read_text()
    code, out, _ = cli(*arguments, "--output_format", "json")
    assert code == 1 and json.loads(out.splitlines()[0])["precision_compare"]["verdict"] == "FAILED"
    assert cli(*arguments, "--bounds", "encoder=6")[0] == 0


def poison_the_comparison(monkeypatch, error):
    add = Precision.add_recording

    def failing(self, audio, waveform, *rest):
        if len(waveform) == POISON:
            raise error
        return add(self, audio, waveform, *rest)

    monkeypatch.setattr(Precision, "add_recording", failing)


COMPARED = ["--device", "cpu", "--precision_compare", "--chunk_ms", 1120]


def test_file_that_cannot_be_compared_fails_comparison(cli, tiny, poison, monkeypatch):
    """A file that cannot be compared is FAILED, and the others are compared."""
    poison_the_comparison(monkeypatch, RuntimeError("the device said no"))
    code, out, err = cli("--model_path", tiny, poison, CLIP, *COMPARED, "--quiet")
    assert code == 1 and re.search(r"NeMo \(cpu, float32\): .*digits.wav", out)
    reason = "cannot be compared: RuntimeError: the device said no"
    assert " ".join(out.split()).endswith(f" Verdict FAILED, first at recording: {reason} in {poison}")
    assert err == f"inference.py: {poison}: {reason}\n"


def test_candidate_that_breaks_off_fails_comparison(cli, tiny, poison, monkeypatch, tmp_path):
    """A candidate that breaks off is FAILED."""
    poison_the_encoder(monkeypatch)
    code, out, _ = cli("--model_path", tiny, poison, *COMPARED, "--quiet", "--report", tmp_path)
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert code == 1 and figures["sine"]["verdict"] == "PASSED" and figures["verdict"] == "FAILED"
    reason = "cannot be transcribed: RuntimeError: the device said no at some length"
    assert [(f["reason"], f["audio"]) for f in figures["failures"]] == [(reason, str(poison))]


def test_interrupted_comparison_is_failed(cli, tiny, poison, monkeypatch, tmp_path):
    """A comparison that is interrupted is FAILED."""
    poison_the_comparison(monkeypatch, KeyboardInterrupt)
    code, out, _ = cli("--model_path", tiny, CLIP, poison, CLIP, *COMPARED, "--quiet", "--report", tmp_path)
    assert code == 130
    assert re.search(r"Verdict +FAILED, first at recording: interrupted: 2 of 3 not\s+compared", out)
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert figures["verdict"] == "FAILED" and [r["verdict"] for r in figures["recordings"]] == ["PASSED"]


def test_failed_comparison_is_not_a_failed_file(cli, tiny):
    """A comparison that fails does not count as a failed file."""
    code, _, err = cli("--model_path", tiny, CLIP, CLIP, *COMPARED, "--bounds", "encoder=0,alone=0")
    assert code == 1 and "2 recordings: 2 done, 0 failed" in err


def test_unknown_tolerance_is_rejected_before_the_work(cli):
    """An unknown name in --bounds is an error before the model is loaded."""
    code, out, err = cli("--precision_compare", "--bounds", "layer=1")
    assert (code, out) == (2, "") and "--bounds layer=1: not a tolerance (use NAME=PERCENT" in err
    assert cli(CLIP, "--bounds", "encoder=1")[0] == 2


def test_report_folder_is_checked_before_the_work(cli, tmp_path):
    """A report folder that cannot be created is an error before the model is loaded."""
    taken = tmp_path / "file"
    taken.write_text("")
    for name in (taken, taken / "inside"):
        code, out, err = cli("--precision_compare", "--report", name)
        assert (code, out, len(err.splitlines())) == (
            2,
            "",
            1,
        ) and f"--report {name}: the folder cannot be created" in err
