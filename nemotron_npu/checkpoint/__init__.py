"""An untrusted ``.nemo`` file -> config, tensors and tokenizers, without running code from it."""
