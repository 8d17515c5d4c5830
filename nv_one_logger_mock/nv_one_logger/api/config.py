"""Part of the stand-in for nv_one_logger."""


class OneLoggerConfig:
    """Stores its arguments."""

    telemetry_config = None

    def __init__(self, **settings):
        self.__dict__.update(settings)
