"""This machine: standard library only, so that setup_env.sh can use it before anything is installed."""
