"""Arithmetic of sizes."""

from __future__ import annotations


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


def filled(n: int, block: int) -> float:
    """The share of the blocks that cover `n` elements which are elements."""
    return n / (cdiv(n, block) * block) if n else 1.0
