"""``--precision_compare``: a device, engine and dtype against stock NeMo on the CPU, stage by stage."""
