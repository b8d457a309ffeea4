"""Predictions, sweeps and machine code: nothing is run."""
