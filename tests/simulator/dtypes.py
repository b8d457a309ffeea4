"""Short names of NumPy's types, for the other modules and the translated code."""

from typing import Any, TypeAlias

import numpy as np

u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i1, i2, i4, i8 = np.int8, np.int16, np.int32, np.int64
f2, f4, f8 = np.float16, np.float32, np.float64

#: NumPy types by bits. A predicate (1 bit) and a byte share a type.
UINT: dict[int, Any] = {1: u1, 8: u1, 16: u2, 32: u4, 64: u8}
SINT: dict[int, Any] = {8: i1, 16: i2, 32: i4, 64: i8}
FLOAT: dict[int, Any] = {16: f2, 32: f4, 64: f8}
#: Unsigned integers by bytes.
UINT_OF_BYTES: dict[int, Any] = {1: u1, 2: u2, 4: u4, 8: u8}

#: An integer whose every byte is 1 (the shadow memory of an element that is set), by size in bytes.
ONES: dict[int, Any] = {1: u1(1), 2: u2(0x0101), 4: u4(0x01010101), 8: u8(0x0101010101010101)}

#: A register is an array over the threads of a CTA.
Array: TypeAlias = np.ndarray[Any, Any]
#: The threads that take part: an array of bool, None for all.
Mask: TypeAlias = Array | None
