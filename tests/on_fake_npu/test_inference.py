"""The command line on ``npu:0`` gives the CPU's results and runs only the encoder on the device."""

import gc
import json
import re
from dataclasses import replace

import fake_npu
import numpy as np
import pytest
import torch
from support import CLIP

from nemotron_npu.audio import read_audio, sine
from nemotron_npu.benchmark import effort, run, startup
from nemotron_npu.benchmark.results import Start
from nemotron_npu.boosting import Phrase
from nemotron_npu.device import TRAITS, choose_device
from nemotron_npu.encoder import Encoder
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.precision.guide import compare_signal
from nemotron_npu.recognizer import load_recognizer
from nemotron_npu.saving import save_checkpoint

fake_npu.install()

NPU, CPU = torch.device("npu:0"), torch.device("cpu")


def load(path, device, engine="native", chunk_ms=None):
    device, _ = choose_device(str(device))
    return load_recognizer(path, device, options=ModelOptions(engine, chunk_ms))


@pytest.fixture(scope="module")
def native(tiny):
    return load(tiny, NPU), load(tiny, CPU)


@pytest.fixture(scope="module")
def nemo(tiny):
    return load(tiny, NPU, "nemo"), load(tiny, CPU, "nemo")


@pytest.fixture(params=["native", "nemo"])
def both(request):
    """The same engine on the NPU and on the CPU."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def steps(monkeypatch):
    """Where the features and the output of each encoder step were."""
    calls, step = [], Encoder.step

    def counted(self, features, state, ends):
        encoded = step(self, features, state, ends)
        calls.append((features.device, encoded.device))
        return encoded

    monkeypatch.setattr(Encoder, "step", counted)
    return calls


@pytest.fixture
def waveforms():
    clip = read_audio(str(CLIP))
    return [clip, sine(), clip[:30000], np.tile(clip, 3), clip[8000:]]


def tokens(transcripts):
    return [[(token.id, token.frame) for token in transcript.tokens] for transcript in transcripts]


def stream_through(recognizer, waveform, samples=1600):
    with recognizer.stream() as stream:
        for first in range(0, len(waveform), samples):
            stream.feed(waveform[first : first + samples])
    return stream.finish()


def tensors_of(thing) -> list[torch.Tensor]:
    """Every tensor that an object holds, also inside its parts."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors_of(part)]
    return tensors_of(list(vars(thing).values())) if hasattr(thing, "__dict__") else []


def test_both_engines_give_the_tokens_of_the_cpu(both):
    """Both engines give the tokens, texts and durations of the CPU."""
    clip = read_audio(str(CLIP))
    waveforms = [clip, sine(), clip[:30000]]
    on_npu, on_cpu = (recognizer.transcribe(waveforms) for recognizer in both)
    assert tokens(on_npu) == tokens(on_cpu) and len(on_cpu[0].tokens) > 10
    for npu, cpu in zip(on_npu, on_cpu, strict=True):
        assert (npu.text, npu.duration) == (cpu.text, cpu.duration)
        if both[0].engine == "native":
            assert [t.probability for t in npu.tokens] == pytest.approx([t.probability for t in cpu.tokens], abs=1e-4)


@pytest.mark.parametrize("slots", [1, 3])
def test_batches_give_the_tokens_of_the_cpu(native, waveforms, slots):
    """Batches give the tokens of the CPU."""
    on_npu, on_cpu = native
    assert tokens(on_npu.transcribe(waveforms, slots)) == tokens(on_cpu.transcribe(waveforms))


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_live_stream_gives_the_tokens_of_the_offline_pass(tiny, chunk_ms):
    """A live stream gives the tokens of the CPU's offline pass."""
    clip = read_audio(str(CLIP))
    on_npu, on_cpu = (load(tiny, device, chunk_ms=chunk_ms) for device in (NPU, CPU))
    live = stream_through(on_npu, clip)
    assert tokens([live]) == tokens(on_cpu.transcribe([clip])) and len(live.tokens) > 10


def transfers_of(steps: int) -> str:
    """Transfers of so many encoder steps: features, maybe masks of a new block size and of the slots, output."""
    return f"((h2d ){{1,3}}d2h ){{{steps}}}"


def test_encoder_step_of_a_batch_takes_one_transfer_back(native, waveforms, steps):
    """An encoder step of a batch takes features and at most two masks there, and one transfer back."""
    recognizer = native[0]
    for slots in (1, 3):
        steps.clear()
        fake_npu.COPIES.clear()
        recognizer.transcribe(waveforms, slots)
        ways = "".join(f"{way} " for way, _ in fake_npu.COPIES)
        assert steps and re.fullmatch(transfers_of(len(steps)), ways)


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_encoder_step_of_a_stream_takes_one_transfer_back(tiny, steps, chunk_ms):
    """An encoder step of a live stream takes features and at most two masks there, and one transfer back."""
    recognizer = load(tiny, NPU, chunk_ms=chunk_ms)
    clip = read_audio(str(CLIP))
    fake_npu.COPIES.clear()
    stream_through(recognizer, clip, samples=320)
    frames = recognizer.encoder.frames(len(clip) // 160)
    assert len(steps) == -(-frames // (chunk_ms // 80))
    assert re.fullmatch(transfers_of(len(steps)), "".join(f"{way} " for way, _ in fake_npu.COPIES))


def test_only_encoder_weights_are_on_the_device(native):
    """The weights of the encoder are on the device; masks, and the weights of features and decoder, on the host."""
    recognizer = native[0]
    encoder = tensors_of({name: part for name, part in vars(recognizer.encoder).items() if name != "mask"})
    assert {tensor.device for tensor in encoder} == {NPU}
    assert sum(tensor.numel() for tensor in encoder) > 0.5 * recognizer.parameters
    assert {tensor.device for tensor in tensors_of([recognizer.frontend, recognizer.decoder])} == {CPU}


def test_only_the_encoder_is_computed_on_the_device(native, steps):
    """The encoder is computed on the device, features and decoder on the host."""
    fake_npu.OPS.clear()
    fake_npu.COPIES.clear()
    native[0].transcribe([sine()])
    ran = set(fake_npu.OPS)
    assert set(steps) == {(NPU, NPU)}
    assert {"aten.native_layer_norm", "aten.bmm", "aten._softmax"} <= ran, sorted(ran)
    assert ran & {"aten.convolution", "aten._conv_depthwise2d"} and ran & {"aten.addmm", "aten.mm"}, sorted(ran)
    assert not ran & {"aten._fft_r2c", "aten.log", "aten.embedding", "aten.lstm", "aten.lstm_cell", "aten.max"}
    block = native[0].encoder.block_for(14)
    features, encoded = block * 8 * 128 * 4, block * 64 * 4
    assert [fake_npu.COPIES[0], fake_npu.COPIES[-1]] == [("h2d", features), ("d2h", encoded)]
    assert len(fake_npu.COPIES) <= 3, "a mask"


def test_live_stream_with_full_context_repeats_its_operators(native):
    """Once the left context is full, each step of a live stream calls the same operators."""
    with native[0].stream() as stream:
        counts = []
        for chunk in np.zeros((9, native[0].chunk_samples), np.float32):
            fake_npu.OPS.clear()
            stream.feed(chunk)
            counts.append(dict(fake_npu.OPS))
    assert counts[-2] == counts[-1] and sum(counts[-1].values()) < sum(counts[1].values())


def test_encoder_output_stays_on_the_device_and_equals_the_cpus(both):
    """Features and encoder output of both engines stay on the device and equal those of the CPU."""
    features, lengths = both[0].preprocess([sine()])
    encoded, frames = both[0].encode(features, lengths)
    assert all(tensor.device == NPU for tensor in (features, lengths, encoded, frames))
    comparison = compare_signal(*both, sine())
    assert comparison.passed and comparison.encoder.max_error < 1e-5


def test_native_engine_on_the_device_passes_against_nemo(native, nemo):
    """The native engine on the device passes the comparison with NeMo on the CPU."""
    comparison = compare_signal(native[0], nemo[1], sine())
    assert comparison.passed and comparison.encoder.max_error < 1e-4


def test_all_weights_of_nemo_are_on_the_device(nemo):
    """All weights of NeMo are on the device, those of the preprocessor included."""
    model = nemo[0].model
    assert {p.device for p in [*model.parameters(), *model.preprocessor.buffers()]} == {NPU}


def test_nemo_computes_every_stage_on_the_device(nemo):
    """NeMo moves the samples to the device, computes every stage there, and returns only tokens."""
    fake_npu.OPS.clear()
    fake_npu.COPIES.clear()
    nemo[0].transcribe([sine()])
    assert sum(size for way, size in fake_npu.COPIES if way == "h2d") >= 16000 * 4
    ran = set(fake_npu.OPS)
    for stage in ("aten._fft_r2c", "aten.log", "aten.convolution", "aten.native_layer_norm", "aten.embedding"):
        assert stage in ran or stage.replace("convolution", "_conv_depthwise2d") in ran, (stage, sorted(ran))
    assert ran & {"aten.lstm", "aten.addmm", "aten.mm", "aten.linear"}
    largest_back = max(size for way, size in fake_npu.COPIES if way == "d2h")
    assert largest_back < 16000, "only tokens come back, no features and no encoder output"


def test_transcription_brings_no_float64_to_the_device(both):
    """No transcription brings float64 to the device."""
    fake_npu.DTYPES.clear()
    both[0].transcribe([sine()])
    both[0].encode(*both[0].preprocess([sine()]))
    assert torch.float32 in fake_npu.DTYPES
    assert not fake_npu.DTYPES & {torch.float64, torch.complex128}


def test_loading_and_streaming_bring_no_float64_to_the_device(tiny):
    """Neither loading nor streaming brings float64 to the device."""
    fake_npu.DTYPES.clear()
    stream_through(load(tiny, NPU, chunk_ms=80), sine())
    assert torch.float32 in fake_npu.DTYPES
    assert not fake_npu.DTYPES & {torch.float64, torch.complex128}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("engine, operator", [("native", "aten._softmax"), ("nemo", "aten._fft_r2c")])
def test_missing_operator_is_an_error_line_for_each_file(cli, tiny, tmp_path, engine, operator, batch_size):
    """An operator that the device lacks is one error line for each file."""
    other = tmp_path / "other.wav"
    other.write_bytes(CLIP.read_bytes())
    fake_npu.DENY.add(operator)
    try:
        options = ["--engine", engine, "--device", "npu:0", "--batch_size", batch_size, "--quiet"]
        code, out, err = cli("--model_path", tiny, *options, CLIP, other)
    finally:
        fake_npu.DENY.clear()
    assert code == 1 and out == ""
    first, second = err.splitlines()
    assert str(CLIP) in first and str(other) in second
    assert "not implemented" in first and "not implemented" in second


def test_benchmark_synchronizes_around_every_run(cli, tiny, tmp_path, monkeypatch):
    """All dtypes of the device are measured, and each timing waits for the device."""
    small = {"STARTS": 1, "ROUNDS": 3, "ROUND_SECONDS": 0, "OFFLINE_SECONDS": (2,), "BATCH_SECONDS": 2}
    for name, value in small.items():
        monkeypatch.setattr(effort, name, value)
    python, script = startup.command()
    monkeypatch.setattr(startup, "command", lambda: [python, fake_npu.__file__, script])
    npu = replace(TRAITS["npu"], dtypes=("float32", "float16"))
    monkeypatch.setitem(TRAITS, "npu", npu)  # a process is started for each
    gc.collect()  # what earlier tests have left on the device is not to be freed meanwhile
    fake_npu.CALLS.clear()
    options = ["--device", "npu:0", "--engine", "native", "--chunk_ms", 560, "--benchmark", "--report", tmp_path]
    code, out, err = cli("--model_path", tiny, CLIP, *options)
    assert code == 0 and "float16" in out, err
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    assert figures["device"] == "npu:0" and "fake" in figures["device_name"]
    assert figures["environment"]["torch_npu"].endswith("+fake")
    rows = figures["benchmark"]["candidates"]
    assert [row["dtype"] for row in rows] == ["float32", "float16"]
    assert all(row["device_peak_bytes"] > 0 and len(row["forward"]["runs"]) == 10 for row in rows)
    runs = 2 * (3 + 10 + 3 * 2)  # forward, and steps and live steps, of two dtypes
    assert sum(call.startswith("synchronize") for call in fake_npu.CALLS) >= 2 * runs


def test_benchmark_gives_nemo_no_native_options(cli, tiny, tmp_path, monkeypatch):
    """--decoder_device and --graph apply to the native engine only, --chunk_ms to both."""
    for name, value in dict(ROUNDS=2, ROUND_SECONDS=0, OFFLINE_SECONDS=(2,), BATCH_SECONDS=2).items():
        monkeypatch.setattr(effort, name, value)
    asked = {}

    def measure_start(name, waveform, options):
        asked[name] = list(map(str, options))
        return Start(1, 1, 1, 1, 1, 1)

    monkeypatch.setattr(run, "measure_start", measure_start)
    options = [
        "--device",
        "npu:0",
        "--dtype",
        "float32",
        "--chunk_ms",
        560,
        "--graph",
        "on",
        "--decoder_device",
        "npu:0",
    ]
    code, out, err = cli("--model_path", tiny, CLIP, "--benchmark", *options)
    assert code == 0, err
    assert "encoder step 560 ms" in out and "step 1120 ms" not in out
    shared = ["--dtype", "float32", "--threads", str(torch.get_num_threads()), "--chunk_ms", "560"]
    assert asked["native float32"][-10:] == [*shared, "--decoder_device", "npu:0", "--graph", "on"]
    assert asked["nemo float32"][-6:] == shared


def test_host_without_npus_gets_a_hint_at_npu_smi(monkeypatch):
    """A host without an NPU gets a hint at npu-smi, and the CPU as its default."""
    monkeypatch.setattr(fake_npu, "DEVICE_COUNT", 0)
    with pytest.raises(SetupError, match=r"finds no NPU \(look at npu-smi info"):
        choose_device("npu:0")
    device, reason = choose_device(None)
    assert device.type == "cpu" and "finds no NPU" in reason


@pytest.mark.parametrize("slots", [1, 3])
def test_decoder_on_the_device_gives_the_same_tokens(tiny, native, slots):
    """A decoder on the device gives the tokens of the CPU."""
    on_npu = load_recognizer(tiny, NPU, options=ModelOptions(decoder_device=NPU))
    waveforms = [read_audio(str(CLIP)), sine(), read_audio(str(CLIP))[:30000]]
    expected = [[(t.id, t.frame) for t in transcript.tokens] for transcript in native[1].transcribe(waveforms)]
    ours = [[(t.id, t.frame) for t in transcript.tokens] for transcript in on_npu.transcribe(waveforms, slots)]
    assert ours == expected and len(expected[0]) > 10


def test_file_of_save_gives_what_the_checkpoint_gives(tiny, tmp_path, waveforms):
    """In the dtype of the file; int8, which the device lacks, is one line."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(tiny, path, "bfloat16")
    ours = load(path, NPU)
    theirs = load_recognizer(tiny, NPU, options=ModelOptions(dtype="bfloat16"))
    assert ours.dtype == "bfloat16"
    assert tokens(ours.transcribe(waveforms, 2)) == tokens(theirs.transcribe(waveforms, 2))
    save_checkpoint(tiny, path, "int8")
    with pytest.raises(SetupError, match=r"^m.safetensors: was saved in int8: not for npu \(--save one with --dtype"):
        load(path, NPU)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_of_the_device_is_that_of_the_whole_encoder(tiny, native, dtype):
    """The whole encoder computes in the dtype of the options, and returns float32."""
    recognizer = load_recognizer(tiny, NPU, options=ModelOptions(dtype=dtype))
    assert {layer.feed_forward1.linear1.weight.dtype for layer in recognizer.encoder.layers} == {getattr(torch, dtype)}
    encoded, _ = recognizer.encode(*recognizer.preprocess([sine()]))
    expected, _ = native[1].encode(*native[1].preprocess([sine()]))
    assert encoded.dtype == torch.float32
    error = (encoded.cpu() - expected).abs().mean() / expected.abs().mean()
    assert 0 < float(error) < 0.02


@pytest.mark.parametrize("method", ["max_prob", "tsallis", "gibbs", "renyi"])
def test_decoder_on_the_device_boosts_and_measures_as_the_cpu(tiny, native, waveforms, method):
    """A decoder on the device gives boosted phrases and confidences of the CPU."""
    on_npu, on_cpu = load_recognizer(tiny, NPU, options=ModelOptions(decoder_device=NPU)), native[1]
    words = [word.text for word in on_cpu.transcribe(waveforms[:1])[0].words]
    phrases = [Phrase(f"{a} {b}", 2.0) for a, b in zip(words[3:], words, strict=False)]
    for recognizer in (on_npu, on_cpu):
        recognizer.boost(phrases, alpha=2.0)
        recognizer.measure_confidence(method)
    ours, expected = on_npu.transcribe(waveforms, 2), on_cpu.transcribe(waveforms, 2)
    on_cpu.boost([])
    assert tokens(ours) == tokens(expected) != tokens(on_cpu.transcribe(waveforms, 2))
    on_cpu.measure_confidence("max_prob")
    sure, expected = ([token.confidence for t in transcripts for token in t.tokens] for transcripts in (ours, expected))
    assert sure == pytest.approx(expected, abs=1e-4)


def test_another_chunk_length_shares_the_weights(tiny, native, waveforms):
    """Another chunk length uses the weights that are already on the device."""
    on_npu, on_cpu = native
    fake_npu.COPIES.clear()
    other = on_npu.at_chunk(80)
    assert not fake_npu.COPIES and other.encoder.layers is on_npu.encoder.layers
    assert tokens(other.transcribe(waveforms)) == tokens(load(tiny, CPU, chunk_ms=80).transcribe(waveforms))
    assert tokens(on_npu.transcribe(waveforms)) == tokens(on_cpu.transcribe(waveforms)), "the first is as it was"
