"""Random checkpoints with the class and config keys of the published one, written by NeMo's own save_to.

    python tests/checkpoints.py tiny OUT.nemo     # seconds, under 3 MB: unit tests
    python tests/checkpoints.py full OUT.nemo     # 618,084,865 parameters, 2.47 GB: shapes, speed, memory
    python tests/checkpoints.py prompted OUT.nemo # 637,997,088 parameters, 2.55 GB: the multilingual one with prompts

Their transcripts mean nothing.  Making the full-size one takes about 8 GB of memory and one or two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from support import CLIP

ATT_CONTEXT_SIZES = [[70, 13], [70, 6], [70, 1], [70, 0]]  # 1120, 560, 160, 80 ms chunks; the first is the default
FULL_SIZE = dict(
    mels=128, channels=256, layers=24, width=1024, heads=8, predictor=640, predictor_layers=2, joint=640, pieces=1024
)
TINY_SIZE = dict(
    mels=128, channels=16, layers=2, width=64, heads=4, predictor=32, predictor_layers=2, joint=32, pieces=64
)
PROMPTED_SIZE = FULL_SIZE | dict(pieces=13_087)
FULL_PARAMETERS = 618_084_865
CTC = {
    "ctc_loss_weight": 0.3,
    "use_cer": False,
    "ctc_reduction": "mean_batch",
    "decoder": {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": None,
        "num_classes": -1,
        "vocabulary": [],
    },
    "decoding": {"strategy": "greedy"},
}
"""The part ``aux_ctc`` of a hybrid model."""
TOKENS_PER_SECOND = 3.0


def nemotron_config(
    tokenizer_dir: str,
    *,
    pieces: int,
    mels: int,
    channels: int,
    layers: int,
    width: int,
    heads: int,
    predictor: int,
    predictor_layers: int,
    joint: int,
    dropout: float = 0.1,
) -> dict:
    """Return the ``model_config.yaml`` of a cache-aware FastConformer-RNNT of this size; the rest is as published."""
    return {
        "sample_rate": 16000,
        "compute_eval_loss": False,
        "log_prediction": False,
        "model_defaults": {"enc_hidden": width, "pred_hidden": predictor, "joint_hidden": joint},
        "tokenizer": {"dir": tokenizer_dir, "type": "bpe"},
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": "NA",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": mels,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": mels,
            "feat_out": -1,
            "n_layers": layers,
            "d_model": width,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": channels,
            "causal_downsampling": True,
            "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos",
            "n_heads": heads,
            "att_context_size": ATT_CONTEXT_SIZES,
            "att_context_style": "chunked_limited",
            "xscaling": False,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 9,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
            "dropout": dropout,
            "dropout_pre_encoder": dropout,
            "dropout_emb": 0.0,
            "dropout_att": dropout,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": predictor, "pred_rnn_layers": predictor_layers, "t_max": None, "dropout": 0.2},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": joint, "activation": "relu", "dropout": 0.2},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default"},
    }


def train_tokenizer(lines: list[str], pieces: int, directory: str | Path) -> None:
    """Write ``tokenizer.model``, ``tokenizer.vocab`` and NeMo's ``vocab.txt`` for a BPE of ``pieces`` pieces."""
    import sentencepiece

    directory = Path(directory)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=pieces,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    names = [processor.id_to_piece(i) for i in range(1, len(processor))]  # as NeMo writes it: no <unk>, ## inside words
    (directory / "vocab.txt").write_text(
        "".join(f"{n[1:] if n.startswith('▁') else '##' + n}\n" for n in names), encoding="utf-8"
    )


def build_model(tokenizer_dir: str | Path, *, seed: int = 0, parts: dict | None = None, **size):
    """Make an ``EncDecRNNTBPEModel`` with random weights in the given size (see FULL_SIZE).

    A part ``aux_ctc`` makes it an ``EncDecHybridRNNTCTCBPEModel``.
    """
    import torch
    from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    torch.manual_seed(seed)
    config = nemotron_config(str(tokenizer_dir), **size)
    for part, changes in (parts or {}).items():
        config.setdefault(part, {}).update(changes)
    if config["encoder"]["d_model"] != size["width"]:
        config["model_defaults"]["enc_hidden"] = config["encoder"]["d_model"]
    model_class = EncDecHybridRNNTCTCBPEModel if "aux_ctc" in config else EncDecRNNTBPEModel
    return model_class(cfg=OmegaConf.create(config))


def make_random_checkpoint(path: str | Path, size: dict, seed: int = 0, speak: bool = True, **parts: dict) -> None:
    """Write a random checkpoint of ``size`` to ``path``.

    ``parts`` change the config: ``encoder={"use_bias": True}``.  ``speak`` makes it emit some tokens a second.
    If ``TEST_CHECKPOINTS`` names a folder, checkpoints are kept and looked up there, for machines without NeMo (see
    other_cpus.py).
    """
    folder = os.environ.get("TEST_CHECKPOINTS")
    if not folder:
        write_random_checkpoint(path, size, seed, speak, **parts)
        return
    arguments = json.dumps([size, seed, speak, parts], sort_keys=True)
    kept = Path(folder) / f"{hashlib.sha256(arguments.encode()).hexdigest()[:16]}.nemo"
    if not kept.exists():
        own = kept.with_suffix(f".{os.getpid()}")
        write_random_checkpoint(own, size, seed, speak, **parts)
        own.rename(kept)
    shutil.copyfile(kept, path)


def write_random_checkpoint(path: str | Path, size: dict, seed: int = 0, speak: bool = True, **parts: dict) -> int:
    """Make it with NeMo, as ``make_random_checkpoint`` says, and return its number of parameters."""
    from pydoc_data.topics import topics  # English text that every Python has

    text = [line for topic in sorted(topics) for line in topics[topic].lower().splitlines()]
    lines = [" ".join(word for word in line.split() if word.isascii() and word.isalpha()) for line in text]
    with tempfile.TemporaryDirectory() as directory:
        train_tokenizer([line for line in lines if line], size["pieces"], directory)
        model = build_model(directory, seed=seed, parts=parts, **size).eval()
        if speak:
            let_speak(model)
        model.save_to(str(path))
    return sum(p.numel() for p in model.parameters())


def write_prompted_checkpoint(path: str | Path) -> int:
    """Write a random checkpoint with prompts and return its number of parameters.

    NeMo 2.7.3 lacks the class: its name and its layers are put into a model of the plain one.  The layers pass the
    encoder output on, and shift it a little for each prompt.
    """
    import torch
    from golden_prompted import CONTEXTS, PROMPTS, TAGS, train_unigram
    from omegaconf import open_dict

    with tempfile.TemporaryDirectory() as folder:
        others = map(chr, range(0x4E00, 0x4E00 + 12_000))  # its English text has some 1,300 pieces
        train_unigram(Path(folder), PROMPTED_SIZE["pieces"], [*TAGS, *others])
        model = build_model(folder, parts={"encoder": {"att_context_size": CONTEXTS}}, **PROMPTED_SIZE).eval()
        let_speak(model)
        width = PROMPTED_SIZE["width"]
        first, second = torch.nn.Linear(width + 128, 2 * width), torch.nn.Linear(2 * width, width)
        with torch.no_grad():
            same = torch.cat([torch.eye(width), -torch.eye(width)])  # relu(x) - relu(-x) is x
            first.weight.copy_(torch.cat([same, 0.1 * torch.randn(2 * width, 128)], 1))
            second.weight.copy_(same.T)
        model.prompt_kernel = torch.nn.Sequential(first, torch.nn.ReLU(), second)
        with open_dict(model.cfg):
            model.cfg.target = "nemo.collections.asr.models.rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt"
            model.cfg.model_defaults.update(initialize_prompt_feature=True, num_prompts=128, prompt_dictionary=PROMPTS)
        model.save_to(str(path))
    return sum(p.numel() for p in model.parameters())


def let_speak(model, prompt: str | None = None) -> None:
    """Make greedy decoding of speech emit about TOKENS_PER_SECOND different tokens, which depend on the audio.

    ``prompt`` is that of a multilingual model.  As initialized, the joint network hardly depends on the encoder and
    repeats one token for ever.
    """
    import soundfile
    import soxr
    import torch

    audio, rate = soundfile.read(CLIP, dtype="float32")
    samples = torch.from_numpy(soxr.resample(audio, rate, 16000))[None]
    featurizer = model.preprocessor.featurizer
    dither, featurizer.dither = featurizer.dither, 0.0
    with torch.inference_mode():
        features, length = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
        encoded, encoded_length = model.encoder(audio_signal=features, length=length)
        if prompt:
            model.set_inference_prompt(prompt)
            encoded = model._apply_prompt_to_encoded(encoded)
        vocabulary = model.joint.num_classes_with_blank - 1
        tokens = torch.arange(vocabulary)
        history = torch.stack([torch.randint(vocabulary, (vocabulary,)), tokens], 1)
        predicted = model.decoder.predict(history, None, add_sos=False)[0][:, 1]  # after each token
        for project, inputs, spread in ((model.joint.enc, encoded[0].T, 3.0), (model.joint.pred, predicted, 1.0)):
            project.weight *= spread / project(inputs).std(0).mean()
            project.bias -= project(inputs).mean(0)
        output = model.joint.joint_net[-1]
        output.weight[tokens] -= 3 * torch.nn.functional.normalize(model.joint.pred(predicted))  # not the same again
        bias = output.bias
        low, high = -10.0, 60.0  # of blank: too many tokens, too few
        for _ in range(16):
            bias[-1] = (low + high) / 2
            hypothesis = model.decoding.rnnt_decoder_predictions_tensor(encoded, encoded_length)[0]
            if len(hypothesis.y_sequence) > TOKENS_PER_SECOND * samples.shape[1] / 16000:
                low = float(bias[-1])
            else:
                high = float(bias[-1])
        bias[-1] = high + 0.05  # at ``high`` itself some frame is undecided between blank and a token
    featurizer.dither = dither


def edited(source: Path, path: Path, change: Callable[[dict], None], mode: str = "w") -> Path:
    """Write the checkpoint ``source`` to ``path`` with its config as ``change(config)`` leaves it, and return it."""
    import yaml

    def changed(text: bytes) -> bytes:
        config = yaml.safe_load(text)
        change(config)
        return yaml.safe_dump(config, sort_keys=False).encode()

    return edited_text(source, path, changed, mode)


def edited_text(source: Path, path: Path, change: Callable[[bytes], bytes], mode: str = "w") -> Path:
    """Do the same with the text of the config."""
    with tarfile.open(source) as archive, tarfile.open(path, mode) as target:
        for member in archive:
            if not member.isfile():
                continue
            content = archive.extractfile(member).read()
            if member.name.endswith("model_config.yaml"):
                content = change(content)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return path


def add_published_sections(config: dict, month: str = "march") -> None:
    """Add the sections that the config of the published file has beside those of a random checkpoint.

    Known from conversion scripts, logs and manifests in public repositories; ``month`` is january or march.
    """
    data = {
        **{"manifest_filepath": None, "sample_rate": 16000, "batch_size": None, "shuffle": True, "num_workers": 4},
        **{
            "use_lhotse": True,
            "skip_missing_manifest_entries": True,
            "input_cfg": None,
            "tarred_audio_filepaths": None,
        },
        **{"batch_duration": 360, "quadratic_duration": 15, "num_buckets": 30, "bucket_duration_bins": None},
        **{"bucket_buffer_size": 20000, "shuffle_buffer_size": 10000, "max_duration": 40.0, "min_duration": 0.1},
        **{"text_field": "text", "lang_field": "lang", "is_tarred": False, "pin_memory": True, "max_tps": None},
    }
    config |= {
        "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        "nemo_version": "2.8.0rc0",
        "train_ds": data,
        "validation_ds": {**data, "shuffle": False},
        "test_ds": {**data, "shuffle": False},
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            **{"freq_masks": 2, "time_masks": 10, "freq_width": 27, "time_width": 0.05},
        },
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 5e-3, "clamp": -1.0}},
        "optim": {
            **{"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.98], "weight_decay": 1e-3},
            "sched": {"name": "CosineAnnealing", "warmup_steps": 5000, "warmup_ratio": None, "min_lr": 1e-6},
        },
        "interctc": {"loss_weights": [], "apply_at_layers": []},
        "variational_noise": {"start_step": 0, "std": 0.0},
        "rnnt_reduction": "mean_volume",
        "skip_nan_grad": False,
        "use_cer": False,
    }
    config["preprocessor"] |= {"log": True, "frame_splicing": 1, "pad_value": 0.0}
    config["encoder"] |= {
        **{"reduction": None, "reduction_position": None, "reduction_factor": 1, "att_context_probs": None},
        **{"subsampling_conv_chunking_factor": 1, "stochastic_depth_drop_prob": 0.0, "stochastic_depth_mode": "linear"},
        **{"stochastic_depth_start_layer": 1, "global_tokens": 0, "use_pytorch_sdpa": False},
    }
    config["joint"] |= {"fused_batch_size": 4}
    config["decoding"] = {
        "strategy": "greedy_batch",
        "greedy": {"max_symbols": 10},
        "beam": {"beam_size": 2, "return_best_hypothesis": False, "score_norm": True, "tsd_max_sym_exp": 50},
    }
    if month == "march":
        config["aux_ctc"] = CTC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=["tiny", "full", "prompted"])
    parser.add_argument("path", metavar="OUT.nemo")
    args = parser.parse_args()
    if args.size == "prompted":
        count = write_prompted_checkpoint(args.path)
    else:
        count = write_random_checkpoint(args.path, TINY_SIZE if args.size == "tiny" else FULL_SIZE)
    print(f"{args.path}: {count:,} parameters, {os.path.getsize(args.path) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
