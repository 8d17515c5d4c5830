"""See nv_one_logger."""


def on_app_start(*args, **kwargs):
    """Does nothing."""
