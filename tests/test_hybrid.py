"""Hybrid RNN-T/CTC checkpoints: the RNN-T branch runs natively, and gives NeMo's tokens."""

import pytest
import torch
from checkpoints import CTC, TINY_SIZE, make_random_checkpoint
from support import token_frames

from nemotron_npu.checkpoint.weights import read_weights
from nemotron_npu.engine import ModelOptions
from nemotron_npu.recognizer import Recognizer, load_recognizer


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A tiny hybrid as the published ones are: 80 mels, biases, scaled inputs."""
    path = tmp_path_factory.mktemp("hybrid") / "hybrid.nemo"
    make_random_checkpoint(path, TINY_SIZE | {"mels": 80}, aux_ctc=CTC, encoder={"use_bias": True, "xscaling": True})
    return path


@pytest.fixture(scope="module")
def expected(hybrid, clip):
    """Tokens and frames by NeMo's own class, which opens the file itself."""
    models = pytest.importorskip("nemo.collections.asr.models")
    model = models.ASRModel.restore_from(str(hybrid), map_location="cpu").eval()
    assert type(model) is models.EncDecHybridRNNTCTCBPEModel and model.ctc_decoder
    model.preprocessor.featurizer.dither = 0.0
    with torch.inference_mode():
        signal = torch.from_numpy(clip)[None]
        features, length = model.preprocessor(input_signal=signal, length=torch.tensor([len(clip)]))
        encoded, count = model.encoder(audio_signal=features, length=length)
        (hypothesis,) = model.decoding.rnnt_decoder_predictions_tensor(encoded, count, return_hypotheses=True)
    tokens = [(int(id), int(frame)) for id, frame in zip(hypothesis.y_sequence, hypothesis.timestamp, strict=True)]
    assert tokens
    return tokens


def test_hybrid_gives_the_tokens_of_nemo_in_both_engines(hybrid, clip, expected):
    """One line reports that the CTC decoder is left out."""
    for options in (ModelOptions(), ModelOptions("nemo")):
        lines: list[str] = []
        recognizer = load_recognizer(hybrid, "cpu", options=options, announce=lines.append)
        assert recognizer.engine == options.engine
        assert token_frames(recognizer.transcribe(clip)) == expected
        assert lines == ["hybrid.nemo: the CTC decoder is left out (the RNN-T decoder transcribes)"]


def test_hybrid_streams_and_counts_what_it_runs(hybrid, clip, expected):
    recognizer = Recognizer(hybrid, "cpu", announce=lambda line: None)
    with recognizer.stream() as stream:
        for first in range(0, len(clip), recognizer.chunk_samples):
            stream.feed(clip[first : first + recognizer.chunk_samples])
    assert token_frames(stream.transcript()) == expected
    left_out = {name: tensor for name, tensor in read_weights(hybrid).items() if name.startswith("ctc_decoder.")}
    assert left_out
    stored = sum(
        tensor.numel() for name, tensor in read_weights(hybrid).items() if not name.startswith("preprocessor.")
    )
    assert recognizer.parameters == stored - sum(tensor.numel() for tensor in left_out.values())
