"""Many devices: transcribe a corpus with workers on this host or on a Ray cluster."""
