"""Part of the stand-in for nv_one_logger."""


class TimeEventCallback:
    """Base class of NeMo's OneLoggerNeMoCallback; its other base, a Lightning callback, has the hooks."""

    def __init__(self, training_telemetry_provider=None, call_on_app_start=True):
        pass
