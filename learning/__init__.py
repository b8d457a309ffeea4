"""Finding the kernel between images, on top of the differentiable functions."""
