"""Hand-written Triton kernels for 2-D cross-correlation, at home in PyTorch."""
