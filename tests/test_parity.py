"""The native engine gives NeMo's float32 results: encoder within 1e-4 everywhere, tokens and their frames equal.

``python -m pytest tests -k parity`` prints the largest differences that it saw.  The full-size checkpoint is compared
where FULL_NEMO names one (made by ``python tests/checkpoints.py full OUT.nemo``); it takes 6 GB and some minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import ATT_CONTEXT_SIZES, TINY_SIZE, make_random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CLIP, CLIP_WORDS, PARITY, ROOT, token_frames

from nemotron_npu.audio import read_audio
from nemotron_npu.engine import ModelOptions
from nemotron_npu.features import FeatureStream
from nemotron_npu.nemo_engine import NemoRecognizer
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")
CHUNKS = [80, 160, 560, 1120]
BOUND = 1e-4
DEMO = ROOT / "demo" / "demo.nemo"
VARIANTS = {  # not Nemotron's, each another way
    "biases, x scaling and left context 56": dict(
        use_bias=True, xscaling=True, att_context_size=[[56, 13], [56, 6], [56, 3], [56, 0]]
    ),
    "batch norm, shared position biases, striding": dict(
        conv_norm_type="batch_norm", untie_biases=False, subsampling="striding", subsampling_factor=4
    ),
    "17 layers of 512, 80 mels": dict(n_layers=17, d_model=512, n_heads=8),
    "regular attention, left 70": dict(att_context_style="regular", att_context_size=[70, 0]),
    "regular attention, right context, symmetric convolution": dict(
        att_context_style="regular", att_context_size=[24, 8], conv_context_size=None, causal_downsampling=False
    ),
    "the whole recording": dict(att_context_style="regular", att_context_size=[-1, -1], conv_kernel_size=31),
}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """44 s: the clip again and again, with silence, digital zero, clipping and noise between."""
    clip = read_audio(str(CLIP))
    noise = np.random.default_rng(0).normal(0, 0.3, 16000).astype(np.float32)
    zero = np.zeros(48000, np.float32)
    return np.concatenate([clip, zero, clip, noise, np.clip(clip * 20, -1, 1), clip * 0.05, zero, noise, clip])


@pytest.fixture(scope="module")
def pair(tiny):
    """(native, NeMo) of the tiny checkpoint at a chunk size; each made once."""
    made = {}

    def get(chunk_ms: int, path: Path = tiny):
        if (path, chunk_ms) not in made:
            made[path, chunk_ms] = (
                Recognizer(path, CPU, options=ModelOptions(chunk_ms=chunk_ms)),
                NemoRecognizer(path, CPU, options=ModelOptions(chunk_ms=chunk_ms)),
            )
        return made[path, chunk_ms]

    return get


@pytest.fixture(scope="module")
def largest(request):
    """Keep the largest difference of each kind, for the end of the report (conftest prints it)."""

    def keep(kind: str, difference: float) -> float:
        seen = request.config.stash[PARITY]
        seen[kind] = max(seen.get(kind, 0.0), difference)
        return difference

    return keep


def assert_same(native, nemo, waveforms, largest, kind) -> None:
    """Features, encoder output and tokens of a batch; ``nemo`` may fail on a batch without any frame."""
    features, lengths = native.preprocess(waveforms)
    theirs, their_lengths = nemo.preprocess(waveforms)
    assert lengths.tolist() == their_lengths.tolist()
    encoded, frames = native.encode(features, lengths)
    expected, their_frames = nemo.encode(theirs, their_lengths)
    assert frames.tolist() == their_frames.tolist()
    for row, (length, count) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        mel = features[row, :, :length] - theirs[row, :, :length]
        out = encoded[row, :, :count] - expected[row, :, :count]
        assert largest("log-mel", float(mel.abs().max())) < BOUND
        assert largest(f"encoder, {kind}", float(out.abs().max())) < BOUND
    ours = native.transcribe(waveforms, slots=len(waveforms))
    assert [token_frames(t) for t in ours] == [token_frames(t) for t in nemo.transcribe(waveforms)]
    assert [t.text for t in ours] == [t.text for t in nemo.transcribe(waveforms)]


def encode_in_blocks(native, waveform, chunks: int) -> torch.Tensor:
    """Encoder output [frames, width] of a stream that is stepped by so many chunks."""
    encoder, stream = native.encoder, FeatureStream(native.frontend)
    mel = torch.cat([stream.feed(torch.from_numpy(waveform)), stream.finish()])
    frames, block = encoder.frames(len(mel)), chunks * encoder.chunk
    steps = -(-frames // block)
    rows = torch.zeros(steps * block * encoder.factor, encoder.mels)
    rows[encoder.lead : encoder.lead + len(mel)] = mel[: len(rows) - encoder.lead]
    state = encoder.new_state(1, block)
    parts = rows.view(steps, 1, block * encoder.factor, encoder.mels)
    ends = [None] * (steps - 1) + [len(mel)]
    return torch.cat([encoder.step(x, state, [end]) for x, end in zip(parts, ends, strict=True)], 1)[0, :frames]


@pytest.mark.parametrize("chunk_ms", CHUNKS)
@pytest.mark.parametrize("chunks", [1, 2, 3, 8])
def test_parity_of_streams_in_blocks_of_chunks(pair, speech, largest, chunk_ms, chunks):
    """The encoder output of a stream is NeMo's, whatever number of chunks a block has."""
    native, nemo = pair(chunk_ms)
    for waveform in (speech[: 16000 * 12], speech[:16000], speech[:700]):
        expected, frames = nemo.encode(*nemo.preprocess([waveform]))
        ours = encode_in_blocks(native, waveform, chunks)
        assert len(ours) == int(frames[0])
        assert largest("encoder, blocks", float((ours - expected[0].T[: len(ours)]).abs().max())) < BOUND


@pytest.mark.parametrize("chunk_ms", CHUNKS)
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_parity_of_ragged_batches(pair, speech, largest, chunk_ms, slots):
    """Batches of recordings of very different lengths give NeMo's results."""
    native, nemo = pair(chunk_ms)
    lengths = np.geomspace(320, 16000 * 40, 16).astype(int)[:: 16 // slots][-slots:]
    order = np.random.default_rng(slots).permutation(lengths)
    assert_same(native, nemo, [speech[:length] for length in order], largest, "batches")


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_parity_around_every_chunk_boundary(pair, speech, largest, chunk_ms):
    """Recordings that end around a chunk boundary give NeMo's results."""
    native, nemo = pair(chunk_ms)
    hop, chunk = 160, chunk_ms * 16
    boundaries = [*range(hop, 9 * 8 * hop + 1, 8 * hop), *(k * chunk + extra for k in (1, 2, 3) for extra in (0, hop))]
    lengths = sorted({b + d for b in boundaries for d in (-1, 0, 1) if b + d >= hop})
    for first in range(0, len(lengths), 16):
        assert_same(native, nemo, [speech[:n] for n in lengths[first : first + 16]], largest, "boundaries")


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_parity_of_the_demo_checkpoint_on_speech_and_noise(pair, speech, largest, chunk_ms):
    """The bundled checkpoint gives NeMo's results for speech with silence, clipping and noise."""
    native, nemo = pair(chunk_ms, DEMO)
    assert_same(native, nemo, [speech], largest, "demo")
    assert native.transcribe([speech])[0].text.split()[-8:] == CLIP_WORDS.split()


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_parity_of_live_streams_with_nemos_offline_pass(pair, speech, chunk_ms):
    """A live stream gives the tokens of NeMo's offline pass, also at 80 ms, where NeMo's streaming does not."""
    native, nemo = pair(chunk_ms, DEMO)
    with native.stream() as stream:
        for first in range(0, len(speech), 1234):
            stream.feed(speech[first : first + 1234])
    assert token_frames(stream.finish()) == token_frames(nemo.transcribe([speech])[0])
    assert stream.text == stream.finish().text == nemo.transcribe([speech])[0].text


@pytest.mark.parametrize("name", VARIANTS)
def test_parity_of_other_configurations(name, tmp_path, speech, largest):
    """Checkpoints whose configuration is not Nemotron's give NeMo's results."""
    path = tmp_path / "variant.nemo"
    size = {**TINY_SIZE, "mels": 80} if "80 mels" in name else TINY_SIZE
    make_random_checkpoint(path, size, seed=1, encoder=VARIANTS[name])
    native, nemo = Recognizer(path, CPU), NemoRecognizer(path, CPU)
    assert native.parameters == nemo.parameters
    assert_same(native, nemo, [speech[:n] for n in (150000, 16000, 640)], largest, "variants")
    if native.encoder.streams:
        for chunks in (1, 3):
            ours = encode_in_blocks(native, speech[:60000], chunks)
            expected, _ = nemo.encode(*nemo.preprocess([speech[:60000]]))
            assert largest("encoder, variants", float((ours - expected[0].T[: len(ours)]).abs().max())) < BOUND


@pytest.mark.parametrize(
    "settings",
    [
        dict(window="hamming", window_size=0.02, preemph=None),
        dict(exact_pad=True),
        dict(exact_pad=True, preemph=None, window="bartlett"),
        dict(log_zero_guard_type="clamp", log_zero_guard_value=1e-6, mag_power=1.0, n_fft=1024),
        dict(log=False, highfreq=7000, lowfreq=60, mel_norm=None),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_parity_of_log_mel_for_every_setting_and_split(settings, speech, largest):
    """Log-mel features are NeMo's for each setting of the preprocessor, and do not depend on how audio is split."""
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    from nemotron_npu.checkpoint.config import PreprocessorConfig
    from nemotron_npu.checkpoint.config_fields import read_part
    from nemotron_npu.checkpoint.weights import Tensors, Weights
    from nemotron_npu.features import Frontend

    config = dict(window_size=0.025, features=80, normalize="NA", dither=0.0, pad_to=0) | settings
    nemo = AudioToMelSpectrogramPreprocessor(**config).eval()
    values = {"_target_": "AudioToMelSpectrogramPreprocessor", "window_stride": 0.01, **config}
    settings = read_part(PreprocessorConfig, values, "preprocessor")
    frontend = Frontend(settings, Weights(Tensors(nemo.featurizer.state_dict()), CPU, torch.float32))
    for samples in (40000, 161, 160, 800):
        waveform = torch.from_numpy(speech[5000 : 5000 + samples])
        expected, length = nemo(input_signal=waveform[None], length=torch.tensor([samples]))
        whole = FeatureStream(frontend)
        mel = torch.cat([whole.feed(waveform), whole.finish()])
        assert len(mel) == max(0, int(length[0]))
        split = FeatureStream(frontend)
        pieces = [split.feed(piece) for piece in waveform.split(97)] + [split.finish()]
        torch.testing.assert_close(torch.cat(pieces), mel, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mel.T, expected[0, :, : len(mel)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_parity_of_streams_split_anywhere(pair, speech, chunk_ms):
    """A stream gives NeMo's tokens however the waveform is split."""
    native, nemo = pair(chunk_ms)
    waveform = speech[20000:68000]
    expected = token_frames(nemo.transcribe([waveform])[0])
    assert len(expected) > 3

    @settings(max_examples=15, deadline=None, database=None)
    @given(st.lists(st.integers(0, len(waveform)), max_size=12))
    def check(cuts):
        with native.stream() as stream:
            for piece in np.split(waveform, sorted(cuts)):
                stream.feed(piece)
        assert token_frames(stream.finish()) == expected

    check()


@pytest.mark.skipif(not os.environ.get("FULL_NEMO"), reason="FULL_NEMO names no full-size checkpoint")
@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_parity_of_the_full_size_checkpoint(speech, largest, chunk_ms):
    """A checkpoint of the full size gives NeMo's results."""
    path = Path(os.environ["FULL_NEMO"])
    native, nemo = (
        Recognizer(path, CPU, options=ModelOptions(chunk_ms=chunk_ms)),
        NemoRecognizer(path, CPU, options=ModelOptions(chunk_ms=chunk_ms)),
    )
    assert native.parameters == nemo.parameters == 618_084_865
    assert_same(native, nemo, [speech[: 16000 * 8], speech[: 16000 * 3 + 7], speech[:320]], largest, "full size")
    expected, _ = nemo.encode(*nemo.preprocess([speech[: 16000 * 8]]))
    ours = encode_in_blocks(native, speech[: 16000 * 8], 1)
    assert largest("encoder, full size", float((ours - expected[0].T[: len(ours)]).abs().max())) < BOUND


def test_contexts_are_those_of_the_published_checkpoint():
    """The chunk lengths of the tests are those of the published checkpoint."""
    assert [(right + 1) * 80 for _, right in ATT_CONTEXT_SIZES] == sorted(CHUNKS, reverse=True)
