"""Bytes in, their CRC-32C out (Castagnoli, RFC 3720 appendix B.4), which TensorFlow's files carry.

The usual byte-by-byte recurrence runs over many stretches of the bytes at once with NumPy; CRCs are linear
over GF(2), so the stretches' results join by what a run of zero bytes does to a register.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # reflected
N_STRETCHES = 1024

Words = NDArray[np.uint32]


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """CRC-32C of the bytes."""
    values = np.frombuffer(data, np.uint8)
    register = 0xFFFFFFFF
    width = len(values) // N_STRETCHES
    if width:
        stretches = values[: width * N_STRETCHES].reshape(N_STRETCHES, width)
        registers = np.zeros(N_STRETCHES, np.uint32)
        for column in np.ascontiguousarray(stretches.T):
            registers = _TABLE[(registers ^ column) & 0xFF] ^ (registers >> 8)
        skip = _zero_bytes(width)
        for stretch in registers.tolist():
            register = _times(skip, register) ^ stretch
    table = _TABLE.tolist()
    for byte in values[width * N_STRETCHES :].tolist():
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """The form in which LevelDB and TensorFlow store a CRC, so that a CRC of CRCs stays useful."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


def _zero_bytes(count: int) -> list[int]:
    """What ``count`` zero bytes do to a register, as the images of its 32 bits: the square-and-multiply rule."""
    table = _TABLE.tolist()
    power = [table[bit & 0xFF] ^ (bit >> 8) for bit in (1 << i for i in range(32))]  # one zero byte
    result = [1 << i for i in range(32)]
    while count:
        if count & 1:
            result = [_times(power, column) for column in result]
        power = [_times(power, column) for column in power]
        count >>= 1
    return result


def _times(matrix: list[int], register: int) -> int:
    product = 0
    for column in matrix:
        if register & 1:
            product ^= column
        register >>= 1
    return product


_TABLE = _byte_table()
