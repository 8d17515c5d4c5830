"""Multilingual checkpoints with prompts give what NeMo 3.0.0 gave: see golden_prompted.py."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import edited
from golden_prompted import CONTEXTS, DATA, OUTPUTS, PROMPTS
from support import CLIP, ROOT, run_process, token_frames

from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.recognizer import Recognizer, load_recognizer

PROMPTED = DATA / "prompted.nemo"
CHUNKS = [80 * (right + 1) for _, right in CONTEXTS]


@pytest.fixture(scope="module")
def golden():
    """Arrays of NeMo 3.0.0 by their names."""
    with np.load(DATA / "prompted.npz") as arrays:
        return dict(arrays)


def load(language=None, chunk_ms=None, **options):
    return Recognizer(PROMPTED, "cpu", options=ModelOptions(language=language, chunk_ms=chunk_ms, **options))


def expected_tokens(golden, prompt, context=CONTEXTS[0]):
    tokens = [(int(id), int(frame)) for id, frame in golden[f"tokens {prompt} {context}"]]
    assert tokens
    return tokens


@pytest.mark.parametrize("prompt, context", OUTPUTS)
def test_encoder_with_prompt_equals_nemo(golden, clip, prompt, context):
    recognizer = load(prompt, 80 * (context[1] + 1))
    encoded, _ = recognizer.encode(*recognizer.preprocess([clip[:32000]]))
    theirs = golden[f"encoder {prompt} {context}"]
    ours = encoded[0].T.numpy()
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4


def test_tokens_of_every_prompt_equal_nemo(golden, clip):
    """The prompts differ, so that no index is taken for another."""
    results = {}
    for prompt in PROMPTS:
        results[prompt] = token_frames(load(prompt).transcribe(clip))
        assert results[prompt] == expected_tokens(golden, prompt), prompt
    assert len(PROMPTS) == 105 and len({str(result) for result in results.values()}) > 50


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_stream_and_batch_at_each_chunk_equal_nemo(golden, clip, context):
    """``auto`` is the default."""
    recognizer = load(chunk_ms=80 * (context[1] + 1))
    expected = expected_tokens(golden, "auto", context)
    with recognizer.stream() as stream:
        for first in range(0, len(clip), recognizer.chunk_samples):
            stream.feed(clip[first : first + recognizer.chunk_samples])
    assert token_frames(stream.transcript()) == expected
    whole, _, again = recognizer.transcribe([clip, clip[:20000], clip], 3)
    assert token_frames(whole) == token_frames(again) == expected


def test_default_is_auto_at_320_ms():
    recognizer = load()
    assert (recognizer.language, recognizer.chunk_ms) == ("auto", 320)
    assert list(recognizer.config.contexts) == CHUNKS
    assert recognizer.at_chunk(80).encoder.prompt is recognizer.encoder.prompt


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_prompt_runs_in_each_dtype(clip, dtype):
    """The relative error stays below 2 %."""
    try:
        recognizer = load(dtype=dtype)
    except SetupError as error:
        pytest.skip(str(error))
    exact = load()
    ours, theirs = (r.encode(*r.preprocess([clip[:32000]]))[0] for r in (recognizer, exact))
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_language_is_an_option_and_in_the_document(cli, tiny):
    options = ["--model_path", PROMPTED, CLIP, "--device", "cpu", "--output_format", "json", "--quiet"]
    code, out, _ = cli(*options, "--language", "zh-CN")
    assert code == 0 and json.loads(out)["language"] == "zh-CN"
    code, _, err = cli(*options, "--language", "nn-NO")
    assert code == 2 and "--language nn-NO: this checkpoint offers x0, x1" in err and "zh-CN" in err
    code, _, err = cli("--model_path", tiny, CLIP, "--device", "cpu", "--language", "en-US")
    assert code == 2 and err.splitlines()[-1].endswith("--language en-US: this checkpoint has only one language")


def test_language_reaches_streams_and_workers(cli, tmp_path):
    """They give the text of a plain run, which is not that of another language."""
    pytest.importorskip("ray")
    copy = shutil.copy(CLIP, tmp_path / "copy.wav")
    options = ["--model_path", PROMPTED, "--device", "cpu", "--quiet", "--language", "zh-CN"]
    text = cli(*options, CLIP)[1]
    expected = sorted([f"{CLIP}: {text}", f"{copy}: {text}"])
    for way in (["--num_workers", 2], ["--stream", "--endpoint_ms", 0]):
        run = run_process(ROOT / "inference.py", *options, *way, CLIP, copy)  # one process cannot start Ray twice
        assert (run.returncode, run.stderr, sorted(run.stdout.splitlines(keepends=True))) == (0, "", expected)
    assert cli(*options, "--language", "auto", CLIP)[1] != text


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"prompt_dictionary": {"en": 128}}, "has the prompt en: 128, not 0 to 127"),
        ({"prompt_dictionary": {"e\x1bn": 1}}, r"has the prompt e\\x1bn, not a word"),
        ({"prompt_dictionary": {}}, "has no model_defaults.prompt_dictionary"),
        ({"num_prompts": 127}, r"prompt_kernel.0.weight has shape \[64, 160\], the config requires \[64, 159\]"),
        ({"initialize_prompt_feature": False}, "prompt_kernel.0.weight.*does not describe"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(tmp_path, changes, problem):
    path = edited(PROMPTED, tmp_path / "m.nemo", lambda config: config["model_defaults"].update(changes))
    with pytest.raises(SetupError, match=problem):
        Recognizer(path, "cpu")


def test_nemo_without_the_class_is_one_line(clip, golden):
    """A NeMo that has it gives the same tokens."""
    pytest.importorskip("nemo")
    options = ModelOptions("nemo", language="en-US")
    if importlib.util.find_spec("nemo.collections.asr.models.rnnt_bpe_models_prompt") is None:
        with pytest.raises(
            SetupError, match=r"NeMo .* does not have EncDecRNNTBPEModelWithPrompt \(needs a newer NeMo"
        ):
            load_recognizer(PROMPTED, "cpu", options=options)
        return
    recognizer = load_recognizer(PROMPTED, "cpu", options=options)
    assert token_frames(recognizer.transcribe(clip)) == expected_tokens(golden, "en-US")
    with torch.inference_mode():
        encoded, _ = recognizer.encode(*recognizer.preprocess([clip[:32000]]))
    assert np.abs(encoded[0].T.numpy() - golden[f"encoder en-US {CONTEXTS[0]}"]).max() < 1e-4
