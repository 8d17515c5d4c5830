"""The command line as its users meet it."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
from support import CLIP, CLIP_WORDS, ROOT, run_process

INFERENCE = ROOT / "inference.py"


@pytest.fixture
def stereo_mp3(tmp_path, digits):
    """The bundled clip as a 44.1 kHz stereo mp3."""
    audio, rate = digits
    path = tmp_path / "stereo.mp3"
    resampled = soxr.resample(audio, rate, 44100)
    soundfile.write(path, np.stack([resampled, resampled * 0.8], 1), 44100)
    return path


@pytest.fixture
def bad_files(tmp_path):
    """One of every kind of input that cannot be used."""
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not sound at all\n" * 50)
    soundfile.write(tmp_path / "silent header.wav", np.zeros(0), 16000)
    names = ["missing.wav", "folder.wav", "empty.wav", "text.wav", "silent header.wav"]
    return [tmp_path / name for name in names]


# ---------------------------------------------------------------- as a process: the first minute of a new user


def test_without_arguments_the_bundled_clip_is_read_out_and_nothing_else_is_on_stdout():
    result = run_process(INFERENCE, cwd="/")
    assert (result.returncode, result.stdout) == (0, CLIP_WORDS + "\n"), result.stderr
    assert 1 <= len(result.stderr.splitlines()) <= 3, "which device, which model: no noise of the libraries"
    assert "device: " in result.stderr and "loading demo.nemo" in result.stderr


def test_quiet_leaves_stderr_empty():
    result = run_process(INFERENCE, "--quiet", "--device", "cpu", CLIP)
    assert (result.returncode, result.stdout, result.stderr) == (0, CLIP_WORDS + "\n", "")


def test_debug_shows_the_log_of_nemo():
    result = run_process(INFERENCE, "--debug", "--engine", "nemo", "--device", "cpu", CLIP)
    assert result.returncode == 0 and result.stdout.strip().endswith(CLIP_WORDS)
    assert "NeMo" in result.stderr


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(tiny):
    command = [sys.executable, INFERENCE, "--model_path", tiny, "--quiet", *[CLIP] * 3]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(120), process.stderr.read()) == (0, "")


@pytest.mark.parametrize("args", [["--help"], ["--nonsense"], ["--device", "tpu"], ["--chunk_ms", "90"], ["none.wav"]])
def test_help_and_wrong_usage_are_answered_before_anything_heavy_is_imported(args):
    code = (
        f"import sys, inference\n"
        f"try: inference.main({args!r})\n"
        f"except SystemExit: pass\n"
        f"print(*sorted({{'torch', 'nemo', 'lightning', 'librosa', 'omegaconf'}} & set(sys.modules)), file=sys.stderr)"
    )
    result = run_process("-c", code, cwd=ROOT)
    assert result.stderr.splitlines()[-1] == ""


def test_the_help_names_every_option_and_fits_the_exit_codes():
    out = run_process(INFERENCE, "--help").stdout
    for word in ("--model_path", "--device", "--chunk_ms", "--precision_compare", "--benchmark", "exit code", "130"):
        assert word in out


def test_without_the_environment_the_remedy_is_the_setup_script(tmp_path):
    """An interpreter that has none of the packages, as in a new shell."""
    result = run_process("-S", "-E", INFERENCE, CLIP)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "source setup_env.sh" in result.stderr


# ---------------------------------------------------------------- files in


def test_a_44_khz_stereo_mp3_and_an_8_khz_wav_are_read_right(cli, stereo_mp3):
    code, out, _ = cli(stereo_mp3, CLIP, "--device", "cpu")
    assert code == 0
    assert out.splitlines() == [f"{stereo_mp3}: {CLIP_WORDS}", f"{CLIP}: {CLIP_WORDS}"]


def test_json_is_one_document_for_each_file_and_nothing_else(cli, stereo_mp3):
    code, out, _ = cli(stereo_mp3, CLIP, "--device", "cpu", "--output_format", "json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [d["audio"] for d in documents] == [str(stereo_mp3), str(CLIP)]
    for document in documents:
        assert document["text"] == CLIP_WORDS
        assert document["device"] == "cpu" and document["engine"] == "native" and document["chunk_ms"] == 1120
        assert document["duration"] == pytest.approx(6.83, abs=0.2)
        assert "".join(t["piece"] for t in document["tokens"]).replace("▁", " ").strip() == CLIP_WORDS
        times = [token["time"] for token in document["tokens"]]
        assert times == sorted(times) and times[0] > 0 and times[-1] <= document["duration"]
        assert all(0 < token["probability"] <= 1 for token in document["tokens"])


def test_nemo_gives_the_same_tokens_without_their_probabilities(cli):
    documents = []
    for engine in ("native", "nemo"):
        code, out, _ = cli(CLIP, "--engine", engine, "--device", "cpu", "--output_format", "json")
        assert code == 0
        documents.append(json.loads(out))
    native, nemo = documents
    assert (nemo["engine"], nemo["text"], nemo["parameters"]) == ("nemo", CLIP_WORDS, native["parameters"])
    assert {token["probability"] for token in nemo["tokens"]} == {None}
    unmeasured = {"probability": None, "confidence": None}
    assert [token | unmeasured for token in native["tokens"]] == nemo["tokens"]


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_every_chunk_size_reads_the_clip_right(cli, chunk_ms):
    code, out, _ = cli(CLIP, "--chunk_ms", chunk_ms, "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert (code, document["text"], document["chunk_ms"]) == (0, CLIP_WORDS, chunk_ms)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_gives_the_same_words_in_the_order_of_the_files(cli, tmp_path, digits, batch_size):
    audio, rate = digits
    short = tmp_path / "short.wav"
    soundfile.write(short, audio[: int(1.0 * rate)], rate)
    files = [CLIP, short, CLIP]
    code, out, _ = cli(*files, "--batch_size", batch_size, "--device", "cpu")
    texts = [line.partition(": ") for line in out.splitlines()]
    assert code == 0 and [name for name, _, _ in texts] == [str(f) for f in files]
    assert [words for _, _, words in texts] == [CLIP_WORDS, "three", CLIP_WORDS]


def test_every_bad_file_is_one_line_and_the_good_ones_are_still_transcribed(cli, bad_files):
    code, out, err = cli(bad_files[0], CLIP, *bad_files[1:], CLIP, "--quiet", "--batch_size", 3, "--device", "cpu")
    assert code == 1
    assert out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert len(err.splitlines()) == len(bad_files)
    for path in bad_files:
        assert sum(str(path) in line for line in err.splitlines()) == 1, err


def test_bad_files_alone_do_not_wait_for_a_model(cli, bad_files, monkeypatch):
    monkeypatch.setattr("nemotron_npu.recognizer.load_recognizer", None)
    code, out, err = cli(*bad_files[:4])
    assert (code, out, len(err.splitlines())) == (1, "", 4)


@pytest.mark.parametrize("samples", [1, 50, 159, 160, 161, 1279, 1280, 1281])
def test_a_recording_of_a_few_samples_gives_an_empty_text(cli, tmp_path, samples):
    path = tmp_path / "blip.wav"
    soundfile.write(path, np.full(samples, 0.01), 16000)
    code, out, err = cli(path, "--quiet", "--device", "cpu")
    assert (code, out, err) == (0, "\n", "")


POISON, POISON_FEATURES, POISON_FRAMES = 12345, 77, 11  # of a recording: samples, feature and encoder frames


@pytest.fixture
def poison(tmp_path):
    path = tmp_path / "poison.wav"
    soundfile.write(path, np.zeros(POISON), 16000)
    return path


def fail_where(monkeypatch, owner, method, poisoned):
    """Make ``owner.method`` fail for arguments that are ``poisoned``."""
    real = getattr(owner, method)

    def failing(self, *args):
        if poisoned(*args):
            raise RuntimeError("the device said no\nat some length")
        return real(self, *args)

    monkeypatch.setattr(owner, method, failing)


def poison_the_encoder(monkeypatch):
    from nemotron_npu.encoder import Encoder

    fail_where(monkeypatch, Encoder, "step", lambda rows, state, ends: POISON_FEATURES in ends)


def poison_the_decoder(monkeypatch):
    from nemotron_npu.decoder import Decoder

    fail_where(monkeypatch, Decoder, "step", lambda frames, state, counts: POISON_FRAMES in counts)


def poison_nemo(monkeypatch):
    from nemotron_npu.nemo_engine import NemoRecognizer

    fail_where(monkeypatch, NemoRecognizer, "_transcribe_batch", lambda waves: any(len(w) == POISON for w in waves))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize(
    "engine, make_fail",
    [("native", poison_the_encoder), ("native", poison_the_decoder), ("nemo", poison_nemo)],
    ids=["encoder", "decoder", "nemo"],
)
def test_a_file_that_fails_inside_the_model_does_not_cost_its_batch(
    cli, poison, monkeypatch, engine, make_fail, batch_size
):
    make_fail(monkeypatch)
    options = ["--engine", engine, "--batch_size", batch_size, "--quiet", "--device", "cpu"]
    code, out, err = cli(CLIP, poison, CLIP, *options)
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert err.splitlines() == [
        f"inference.py: {poison}: cannot be transcribed: RuntimeError: the device said no at some length"
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_file_that_breaks_off_in_its_middle_does_not_cost_its_batch(cli, tmp_path, batch_size):
    broken = tmp_path / "broken.flac"
    soundfile.write(broken, np.random.default_rng(0).uniform(-1, 1, 40000), 16000)
    broken.write_bytes(broken.read_bytes()[:9000])
    code, out, err = cli(CLIP, broken, CLIP, "--batch_size", batch_size, "--quiet", "--device", "cpu")
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert len(err.splitlines()) == 1 and f"{broken}: broken audio" in err


def test_a_name_with_spaces_newlines_and_bytes_that_are_no_text_can_be_used(tmp_path):
    path = os.fsencode(tmp_path) + b"/a b\nc \xff.wav"
    shutil.copy(CLIP, path)
    command = [sys.executable, INFERENCE, "--output_format", "json", "--quiet", "--device", "cpu", path]
    result = subprocess.run(command, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"] == CLIP_WORDS


# ---------------------------------------------------------------- the model


def test_a_model_without_audio_is_checked_on_the_sine_as_in_the_write_up(cli, tiny):
    code, out, _ = cli("--model_path", tiny, "--device", "cpu")
    lines = out.splitlines()
    assert code == 0
    assert lines[:3] == [
        "Parameters: 242,305",
        "Preprocessed shape: [1, 128, 101]",
        "Encoder output shape: [1, 64, 14]",
    ]
    assert lines[3].startswith("Transcription: ") and len(lines) == 4


def test_the_sine_in_json_has_the_same_facts(cli, tiny):
    code, out, _ = cli("--model_path", tiny, "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert code == 0 and document["parameters"] == 242305
    assert document["preprocessed_shape"] == [1, 128, 101] and document["encoder_output_shape"] == [1, 64, 14]


def test_a_chunk_size_that_the_checkpoint_does_not_offer_names_those_it_does(cli):
    code, out, err = cli("--chunk_ms", 100)
    assert (code, out) == (2, "")
    assert err == "inference.py: --chunk_ms 100: this checkpoint offers 80, 160, 560, 1120\n"


def test_a_checkpoint_with_broken_weights_is_one_line(cli, tiny, tmp_path):
    import tarfile

    broken = tmp_path / "broken.nemo"
    with tarfile.open(tiny) as whole, tarfile.open(broken, "w") as part:
        for member in whole:
            if member.isfile() and "weights" not in member.name:
                part.addfile(member, whole.extractfile(member))
    code, out, err = cli("--model_path", broken, "--device", "cpu", "--quiet")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and str(broken) in err


@pytest.mark.parametrize("option, value", [("--threads", 100_000), ("--threads", 10**11), ("--block_ms", 10**11)])
def test_numbers_that_no_machine_can_serve_are_refused(cli, option, value):
    code, out, err = cli(CLIP, option, value)
    assert (code, out) == (2, "") and f"argument {option}: {value} " in err


# ---------------------------------------------------------------- measuring


def test_the_precision_of_speech_is_compared_stage_by_stage_and_reported(cli, tmp_path, stereo_mp3):
    report = tmp_path / "new" / "report"
    options = ["--device", "cpu", "--precision_compare", "--chunk_ms", 560, "--report", report]
    code, out, err = cli(CLIP, stereo_mp3, *options)
    assert code == 0 and out.count(CLIP_WORDS) == 2, err
    assert out.index("Precision of cpu against cpu: 1 s sine of 440 Hz") < out.index(CLIP_WORDS)
    table = out[out.index("stage by stage: 2 recordings") :]
    for line in (r"layer 4 .* 1\.0000", r"tokens +16 of 16 equal; smallest margin", r"words +16 of 16 equal",
                 r"stream, 560 ms .* 16 of 16 tokens equal", r"the same twice +cpu 0, NeMo on the cpu 0",
                 r"Verdict +PASSED"):  # fmt: skip
        assert re.search(line, table), (line, table)
    figures = json.loads((report / "precision.json").read_text())
    assert [r["audio"] for r in figures["recordings"]] == [str(CLIP), str(stereo_mp3)]
    assert {r["verdict"] for r in figures["recordings"]} == {"PASSED"}
    assert figures["sine"]["cpu_against_cpu"] == {"mse": 0, "mae": 0, "max_error": 0, "relative_error_percent": 0}
    assert figures["environment"]["command"] and figures["candidate"]["parameters"] > 1e6
    assert "PASSED" in (report / "precision.html").read_text() and str(report) in err


def test_nemo_compared_with_nemo_on_the_cpu_is_equal_to_the_last_bit(cli, tiny, tmp_path):
    options = ["--engine", "nemo", "--device", "cpu", "--precision_compare", "--chunk_ms", 1120, "--report", tmp_path]
    assert cli("--model_path", tiny, *options)[0] == 0
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert figures["candidate"]["engine"] == "nemo"
    assert figures["sine"]["encoder"]["max_error"] == figures["sine"]["preprocessor"]["max_error"] == 0
    for walk in figures["walks"].values():
        assert all(row["accumulated"]["max_error"] == 0 for row in walk["stages"])


def test_without_audio_the_comparison_takes_the_sine_and_the_bundled_clip(cli):
    options = ["--device", "cpu", "--precision_compare", "--chunk_ms", 1120]
    code, out, _ = cli(*options)
    assert code == 0 and "Precision of cpu against cpu: 1 s sine of 440 Hz" in out and CLIP_WORDS not in out
    assert out.index("Verdict                 PASSED (< 1 %)") < out.index("stage by stage: digits.wav, 6.8 s")
    code, out, err = cli(*options, "--output_format", "json")
    sine, clip = map(json.loads, out.splitlines())
    assert sine["precision_compare"]["verdict"] == clip["precision_compare"]["verdict"] == "PASSED"
    assert clip["text"] == CLIP_WORDS and clip["precision_compare"]["stages"][0]["stage"] == "log-mel"
    assert "stage by stage" in err


def test_a_comparison_that_fails_says_so_and_ends_with_1(cli, tiny, monkeypatch, tmp_path):
    from nemotron_npu.recognizer import Recognizer

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
    from nemotron_npu.precision.compare import Precision

    add = Precision.add

    def failing(self, audio, waveform, *rest):
        if len(waveform) == POISON:
            raise error
        return add(self, audio, waveform, *rest)

    monkeypatch.setattr(Precision, "add", failing)


COMPARED = ["--device", "cpu", "--precision_compare", "--chunk_ms", 1120]


def test_a_file_that_cannot_be_compared_does_not_cost_the_others_but_is_not_passed(cli, tiny, poison, monkeypatch):
    poison_the_comparison(monkeypatch, RuntimeError("the device said no"))
    code, out, err = cli("--model_path", tiny, poison, CLIP, *COMPARED, "--quiet")
    assert code == 1 and re.search(r"stage by stage: .*digits.wav", out)
    reason = "cannot be compared: RuntimeError: the device said no"
    assert out.splitlines()[-1].split(None, 1) == ["Verdict", f"FAILED, first at recording: {reason} in {poison}"]
    assert err == f"inference.py: {poison}: {reason}\n"


def test_a_candidate_that_breaks_off_is_not_passed(cli, tiny, poison, monkeypatch, tmp_path):
    poison_the_encoder(monkeypatch)
    code, out, _ = cli("--model_path", tiny, poison, *COMPARED, "--quiet", "--report", tmp_path)
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert code == 1 and figures["sine"]["verdict"] == "PASSED" and figures["verdict"] == "FAILED"
    reason = "cannot be transcribed: RuntimeError: the device said no at some length"
    assert [(f["reason"], f["audio"]) for f in figures["failures"]] == [(reason, str(poison))]


def test_a_comparison_that_is_interrupted_is_not_passed(cli, tiny, poison, monkeypatch, tmp_path):
    poison_the_comparison(monkeypatch, KeyboardInterrupt)
    code, out, _ = cli("--model_path", tiny, CLIP, poison, CLIP, *COMPARED, "--quiet", "--report", tmp_path)
    assert code == 130 and "Verdict               FAILED, first at recording: interrupted: 2 of 3 not compared" in out
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert figures["verdict"] == "FAILED" and [r["verdict"] for r in figures["recordings"]] == ["PASSED"]


def test_a_comparison_that_fails_is_not_counted_as_a_file_that_failed(cli, tiny):
    code, _, err = cli("--model_path", tiny, CLIP, CLIP, *COMPARED, "--bounds", "encoder=0,alone=0")
    assert code == 1 and "2 recordings: 2 done, 0 failed" in err


def test_bounds_that_are_none_are_known_before_the_work(cli):
    code, out, err = cli("--precision_compare", "--bounds", "layer=1")
    assert (code, out) == (2, "") and err.startswith("inference.py: --bounds: 'layer=1' is none: NAME=PERCENT")
    assert cli(CLIP, "--bounds", "encoder=1")[0] == 2


@pytest.mark.parametrize("option", ["--precision_compare", "--benchmark"])
def test_what_measures_is_not_resumed_since_it_would_say_nothing_of_what_is_done(cli, tmp_path, option):
    code, out, err = cli(CLIP, "--output_dir", tmp_path, "--resume", option)
    assert (code, out) == (2, "") and "leave --resume out" in err


def test_debug_shows_where_an_error_came_from(cli, tmp_path):
    code, _, err = cli("--model_path", tmp_path / "none.nemo", "--debug")
    assert code == 2 and "Traceback" in err and "none.nemo: no such file" in err.splitlines()[-1]


def test_a_report_that_cannot_be_written_is_known_before_the_work(cli, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    for name in (taken, taken / "inside"):
        code, out, err = cli("--precision_compare", "--report", name)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and f"--report {name}: not a folder" in err


def test_a_report_of_nothing_is_refused(cli):
    code, _, err = cli(CLIP, "--report", "report")
    assert code == 2 and "--report needs" in err


# ---------------------------------------------------------------- devices and interruptions


def test_a_device_that_is_not_usable_is_one_line_and_never_replaced(cli, no_torch_npu):
    code, out, err = cli(CLIP, "--device", "npu:0")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "npu:0: torch_npu is not installed" in err


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_ctrl_c_ends_with_130_and_keeps_what_was_printed(cli, monkeypatch, engine):
    from nemotron_npu.nemo_engine import NemoRecognizer
    from nemotron_npu.recognizer import Recognizer

    kind = {"native": Recognizer, "nemo": NemoRecognizer}[engine]
    results = kind.results

    def interrupted(self, sources, *rest):
        yield next(results(self, sources, *rest))
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "results", interrupted)
    code, out, err = cli(CLIP, CLIP, "--engine", engine, "--device", "cpu", "--quiet")
    assert (code, out) == (130, f"{CLIP}: {CLIP_WORDS}\n") and err == "inference.py: interrupted: 1 of 2 not done\n"


def test_ctrl_c_keeps_what_was_done_before_its_turn(cli, monkeypatch, tmp_path, digits):
    from nemotron_npu.encoder import Encoder

    audio, rate = digits
    short = tmp_path / "short.wav"
    soundfile.write(short, audio[:rate], rate)
    step, calls = Encoder.step, []

    def interrupted(self, rows, state, ends):
        calls.append(ends)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, rows, state, ends)

    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(40 * 16000), 16000)
    monkeypatch.setattr(Encoder, "step", interrupted)
    code, out, _ = cli(long, short, short, "--batch_size", 2, "--device", "cpu", "--quiet")
    assert (code, out) == (130, f"{short}: three\n" * 2)
