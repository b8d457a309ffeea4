"""Tensors to kernels: layouts, arguments, launches, and launches that are prepared once."""
