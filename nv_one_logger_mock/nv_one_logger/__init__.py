"""Stand-in for nv_one_logger, NVIDIA's telemetry package: it records and sends nothing.

NeMo imports the real package unconditionally. This one has only the names that NeMo 2.7.3 imports. It is found through
PYTHONPATH, which setup_env.sh extends if the real package is not installed.
"""
