"""Stand-in for nv_one_logger, NVIDIA's telemetry package: nothing is measured, nothing is sent.

NeMo imports the real package at its top, needed or not. This one has the names that NeMo 2.7.3 imports, and no more. It
is found through PYTHONPATH, which setup_env.sh extends only where the real package is not installed.
"""
