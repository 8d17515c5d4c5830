"""Write what NeMo 3.0.0 computes for a small multilingual checkpoint: data/prompted.nemo and data/prompted.npz.

    python tests/golden_prompted.py        # needs NeMo 3.0.0: NeMo 2.7.3, which the tests run with, lacks the class

The checkpoint is a random one of the class and the keys of nvidia/nemotron-3.5-asr-streaming-0.6b: prompts, a left
context of 56 frames, a Unigram vocabulary with language tags, gzipped.  The .npz has, for the bundled clip, the tokens
and frames of every prompt at the default chunk and of ``auto`` at each chunk, and the encoder output of some.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import soundfile
import soxr
import torch
from checkpoints import let_speak, nemotron_config
from support import CLIP, ROOT

DATA = ROOT / "tests" / "data"
CONTEXTS = [[56, 3], [56, 0], [56, 6], [56, 13]]
SIZE = dict(mels=80, channels=8, layers=2, width=32, heads=4, predictor=16, predictor_layers=2, joint=16, pieces=96)
TAGS = ["<en-US>", "<de-DE>", "<zh-CN>"]
LANGUAGES = ["en-US", "en-GB", "de-DE", "fr-FR", "es-ES", "zh-CN", "ja-JP", "ko-KR", "hi-IN", "ar-AR", "auto"]
PROMPTS = {name: index for index, name in enumerate(f"x{i}" for i in range(105 - len(LANGUAGES)))}
PROMPTS |= {name: index for index, name in enumerate(LANGUAGES, len(PROMPTS) - 3)}
OUTPUTS = [("auto", [56, 3]), ("en-US", [56, 3]), ("zh-CN", [56, 0]), ("auto", [56, 13])]


def train_unigram(folder: Path, pieces: int = SIZE["pieces"], symbols: Sequence[str] = TAGS) -> None:
    """Write a Unigram tokenizer with language tags, or other ``symbols``."""
    from pydoc_data.topics import topics

    lines = [" ".join(word for word in text.lower().split() if word.isalpha()) for text in topics.values()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line[:4000] for line in lines if line]),
        model_prefix=str(folder / "tokenizer"),
        model_type="unigram",
        vocab_size=pieces,
        user_defined_symbols=symbols,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    names = [processor.id_to_piece(i) for i in range(1, len(processor))]
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def build(folder: Path):
    """Make the model with random weights that a few bits spell, so that the file is small."""
    from nemo.collections.asr.models.rnnt_bpe_models_prompt import EncDecRNNTBPEModelWithPrompt
    from omegaconf import OmegaConf

    torch.manual_seed(20)
    config = nemotron_config(str(folder), **SIZE)
    config["encoder"]["att_context_size"] = CONTEXTS
    config["model_defaults"] |= {
        "initialize_prompt_feature": True,
        "num_prompts": 128,
        "prompt_dictionary": PROMPTS,
    }
    model = EncDecRNNTBPEModelWithPrompt(cfg=OmegaConf.create(config)).eval()
    with torch.no_grad():
        model.prompt_kernel[0].weight[:, SIZE["width"] :] *= 8  # or the prompts would hardly differ
    let_speak(model, "auto")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


@torch.inference_mode()
def run(model, samples: torch.Tensor, prompt: str, context: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder output [frames, width] and the tokens [n, 2], each with its frame."""
    model.encoder.set_default_att_context_size(context)
    length = torch.tensor([samples.shape[1]])
    index = torch.tensor([PROMPTS[prompt]])
    encoded, count = model.forward(input_signal=samples, input_signal_length=length, prompt_indices=index)
    (found,) = model.decoding.rnnt_decoder_predictions_tensor(encoded, count, return_hypotheses=True)
    tokens = [(int(id), int(frame)) for id, frame in zip(found.y_sequence, found.timestamp, strict=True)]
    return encoded[0].T.numpy(), np.array(tokens, np.int16).reshape(-1, 2)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train_unigram(Path(folder))
        model = build(Path(folder))
        model.save_to(f"{folder}/prompted.nemo")
        (DATA / "prompted.nemo").write_bytes(gzip.compress(Path(f"{folder}/prompted.nemo").read_bytes(), mtime=0))
    audio, rate = soundfile.read(CLIP, dtype="float32")
    samples = torch.from_numpy(soxr.resample(audio, rate, 16000))[None]
    model.preprocessor.featurizer.dither = 0.0
    golden = {}
    for prompt in PROMPTS:
        golden[f"tokens {prompt} {CONTEXTS[0]}"] = run(model, samples, prompt, CONTEXTS[0])[1]
    for context in CONTEXTS[1:]:
        golden[f"tokens auto {context}"] = run(model, samples, "auto", context)[1]
    for prompt, context in OUTPUTS:
        golden[f"encoder {prompt} {context}"] = run(model, samples[:, :32000], prompt, context)[0]
    np.savez_compressed(DATA / "prompted.npz", **golden)
    for path in (DATA / "prompted.nemo", DATA / "prompted.npz"):
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    different = {golden[name].tobytes() for name in golden if name.startswith("tokens")}
    print(f"{len(golden[f'tokens auto {CONTEXTS[0]}'])} tokens with auto; {len(different)} different results")


if __name__ == "__main__":
    main()
