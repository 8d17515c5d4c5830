"""A ``.nemo`` file, from anywhere, -> config, tensors and tokenizers; it runs no code."""
