"""Part of the stand-in for nv_one_logger."""
