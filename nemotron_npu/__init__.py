"""Streaming speech recognition with cache-aware FastConformer-RNNT checkpoints on Ascend NPUs, GPUs and CPUs."""

import os

# torch_npu registers itself to be imported by `import torch`, which then dies on a host without CANN, even for the CPU.
# It must be set before the first `import torch`; for an npu device, device.py imports torch_npu by name.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# Threads that spin while they wait take the core of whoever shares it: with a busy neighbour two threads then need 5 to
# 10 times longer than one.  Read by OpenMP when torch is loaded; the user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
