"""Streaming speech recognition with cache-aware FastConformer-RNNT checkpoints on Ascend NPUs, GPUs and CPUs."""
