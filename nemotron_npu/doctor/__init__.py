"""``--doctor``: check the environment, the device and the model."""
