"""Pure functions from a problem to a plan; no kernels and no tensors here."""
