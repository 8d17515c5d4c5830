"""Part of the stand-in for nv_one_logger."""

from nv_one_logger.api.config import OneLoggerConfig


class TrainingTelemetryProvider:
    """The singleton that NeMo configures while it is imported."""

    _instance = None

    def __init__(self):
        self.config = OneLoggerConfig()

    @classmethod
    def instance(cls):
        cls._instance = cls._instance or cls()
        return cls._instance

    def with_base_config(self, config):
        self.config = config
        return self

    def with_export_config(self, *args, **kwargs):
        return self

    def configure_provider(self):
        pass

    def set_training_telemetry_config(self, config):
        self.config.telemetry_config = config
