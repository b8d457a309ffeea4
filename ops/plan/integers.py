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


def row_block(columns: int, most: int, least: int) -> int:
    """Columns of a tile, `least` or more: the most that leave about the least of the last empty."""
    blocks = [most >> i for i in range(most.bit_length()) if most >> i >= least]
    covered = {block: cdiv(columns, block) * block for block in blocks}
    close = [block for block, width in covered.items() if width <= 1.1 * min(covered.values())]
    return min(close[0], power_of_two(columns))
