"""Workloads, measuring, and what kernels are compiled to."""
