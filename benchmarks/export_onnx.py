#!/usr/bin/env python3
"""Export a ``.nemo`` to ONNX for ``peers.py``: a folder for each chunk, as sherpa-onnx reads it.

    python benchmarks/export_onnx.py model.nemo onnx            # with NeMo: encoder, decoder, joiner
    ORT/bin/python benchmarks/export_onnx.py --quantize onnx    # with onnxruntime, onnx, sympy: the same in int8

ONNX Runtime's own ``quantize_dynamic`` makes int8, as in the models that sherpa-onnx publishes.  The full size needs
13 GB of disk and ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHUNKS = (80, 160, 560, 1120)
PARTS = ("encoder", "decoder", "joiner")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nemo", type=Path, nargs="?")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=CHUNKS)
    parser.add_argument("--quantize", action="store_true", help="write the int8 files beside the float32 ones")
    args = parser.parse_args()
    if args.quantize:
        quantize(args.folder, args.chunk_ms)
    else:
        export(args.nemo.resolve(), args.folder, args.chunk_ms)


def export(nemo: Path, folder: Path, chunks: list[int]) -> None:
    """Write encoder, decoder and joint network of each chunk, and the tokens."""
    sys.path.insert(0, str(ROOT))
    import onnx
    import torch

    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.nemo_engine import NemoRecognizer

    engine = NemoRecognizer(nemo, torch.device("cpu"), options=ModelOptions("nemo"))
    model = engine.model
    encoder, decoder = model.encoder, model.decoder
    model.set_export_config({"cache_support": True})
    for chunk_ms in chunks:
        encoder.set_default_att_context_size(engine.config.choose_context(chunk_ms)[1])
        into = folder / str(chunk_ms)
        into.mkdir(parents=True, exist_ok=True)
        pieces = [*model.joint.vocabulary, "<blk>"]
        (into / "tokens.txt").write_text("".join(f"{piece} {index}\n" for index, piece in enumerate(pieces)))
        with contextlib.chdir(into):  # weights of more than 2 GB go to files in the working directory
            for part, module in zip(PARTS, (encoder, decoder, model.joint), strict=True):
                module.export(f"{part}.onnx")
        settings = encoder.streaming_cfg
        shift = settings.chunk_size[1]
        normalize = model.cfg.preprocessor.normalize
        metadata = {
            "vocab_size": decoder.vocab_size,
            "window_size": shift + settings.pre_encode_cache_size[1],
            "chunk_size_ms": chunk_ms,
            "chunk_shift": shift,
            "normalize_type": normalize if normalize != "NA" else "",
            "cache_last_channel_dim1": len(encoder.layers),
            "cache_last_channel_dim2": settings.last_channel_cache_size,
            "cache_last_channel_dim3": encoder.d_model,
            "cache_last_time_dim1": len(encoder.layers),
            "cache_last_time_dim2": encoder.d_model,
            "cache_last_time_dim3": encoder.conv_context_size[0],
            "pred_rnn_layers": decoder.pred_rnn_layers,
            "pred_hidden": decoder.pred_hidden,
            "subsampling_factor": encoder.subsampling_factor,
            "feat_dim": model.cfg.encoder.feat_in,
            "model_type": "EncDecHybridRNNTCTCBPEModel",
        }
        path = into / "encoder.onnx"
        graph = onnx.load(path, load_external_data=False)
        onnx.helper.set_model_props(graph, {name: str(value) for name, value in metadata.items()})
        onnx.save(graph, path)


def quantize(folder: Path, chunks: list[int]) -> None:
    """Write the int8 files of each chunk."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for chunk_ms in chunks:
        for part in PARTS:
            path = folder / str(chunk_ms) / f"{part}.onnx"
            quantize_dynamic(path, path.with_suffix(".int8.onnx"), weight_type=QuantType.QUInt8)


if __name__ == "__main__":
    main()
