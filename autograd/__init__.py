"""Differentiable functions and layers, on top of the operators."""
