"""Expected values: RFC 3720 appendix B.4, the check value of the CRC catalogue, and a bit-by-bit division."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbert.checkpoints.crc32c import N_STRETCHES, crc32c, masked


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (bytes([0xFF] * 32), 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3 * N_STRETCHES + 5))
def test_stretches_equal_a_division_bit_by_bit(seed: int, size: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    assert crc32c(data) == by_division(data.tobytes())


def by_division(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_masked_is_leveldbs_rotation_and_offset() -> None:
    assert masked(0) == 0xA282EAD8
    assert masked(0x00008000) == 0xA282EAD9
