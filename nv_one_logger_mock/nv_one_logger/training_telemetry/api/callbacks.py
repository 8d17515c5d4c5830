"""Part of the stand-in for nv_one_logger."""


def on_app_start(*args, **kwargs):
    """Do nothing."""
