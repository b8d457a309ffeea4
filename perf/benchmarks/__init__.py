"""Benchmarks that need no GPU run: CPU calls, learning, start, host cost."""
