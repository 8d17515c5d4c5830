"""Part of the stand-in for nv_one_logger."""


class TrainingTelemetryConfig:
    """Stores its arguments."""

    def __init__(self, **settings):
        self.__dict__.update(settings)
