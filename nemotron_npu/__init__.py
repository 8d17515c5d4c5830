"""Streaming speech recognition with cache-aware FastConformer-RNNT checkpoints on Ascend NPUs, GPUs and CPUs."""

import os

# torch_npu registers itself to be imported by `import torch`, which then dies on a host without CANN, even for the CPU.
# It must be set before the first `import torch`; for an npu device, device.py imports torch_npu by name.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
