"""See nv_one_logger."""


class TrainingTelemetryConfig:
    """Keeps what it is given."""

    def __init__(self, **settings):
        self.__dict__.update(settings)
