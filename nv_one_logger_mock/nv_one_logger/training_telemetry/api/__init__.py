"""See nv_one_logger."""
