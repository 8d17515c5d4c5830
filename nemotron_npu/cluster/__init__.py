"""Many devices: a corpus over workers on this host or on a Ray cluster."""
