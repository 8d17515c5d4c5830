"""See nv_one_logger."""


class OneLoggerConfig:
    """Keeps what it is given."""

    telemetry_config = None

    def __init__(self, **settings):
        self.__dict__.update(settings)
