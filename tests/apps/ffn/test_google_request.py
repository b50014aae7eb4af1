"""The request in google/ffn's results, in messages written out byte by byte."""

from __future__ import annotations

from typing import Any

import pytest

from apps.core.errors import DataError
from apps.ffn.google_request import read_request


def field(number: int, wire: int, content: bytes) -> bytes:
    key = number << 3 | wire
    return (bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])) + content


def text(number: int, value: str) -> bytes:
    return field(number, 2, bytes([len(value)]) + value.encode())


FLOAT_128, FLOAT_33, FLOAT_0_95 = b"\x00\x00\x00\x43", b"\x00\x00\x04\x42", b"\x33\x33\x73\x3f"
OPTIONS = field(1, 5, FLOAT_0_95) + field(6, 2, b"\x06\x08\x01\x10\x02\x18\x01") + field(8, 0, b"\xe8\x07")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", {}),
        (field(2, 5, FLOAT_128) + field(3, 5, FLOAT_33), {"image_mean": 128.0, "image_stddev": 33.0}),
        (
            text(17, "PolicyPeaks") + text(13, "a/model.ckpt-1"),
            {"seed_policy": "PolicyPeaks", "model_checkpoint_path": "a/model.ckpt-1"},
        ),
        (field(24, 2, b"\x0a" + text(3, "x.h5:raw")), {"image": {"hdf5": "x.h5:raw"}}),
        (
            field(14, 2, bytes([len(OPTIONS)]) + OPTIONS),
            {
                "inference_options": {
                    "init_activation": 0.95,
                    "min_boundary_dist": {"x": 1, "y": 2, "z": 1},
                    "min_segment_size": 1000,
                }
            },
        ),
        (field(16, 0, b"\xff" * 9 + b"\x01"), {"checkpoint_interval": -1}),
        (field(5, 2, b"\x02\x20\x01") + field(31, 1, bytes(8)) + field(27, 0, b"\x04"), {"batch_size": 4}),  # not told
    ],
)
def test_fields_have_their_names(message: bytes, expected: dict[str, Any]) -> None:
    assert read_request(message, "x") == expected
    # NumPy's byte strings lose the zeros at their end.
    assert read_request(message.rstrip(b"\0"), "x") == expected


def test_zeros_at_the_end_are_put_back() -> None:
    assert read_request(field(2, 5, b""), "x") == {"image_mean": 0.0}
    assert read_request(field(27, 0, b""), "x") == {"batch_size": 0}


@pytest.mark.parametrize(
    "message",
    [
        field(13, 2, b"\xff\xff\xff\xff\x7f"),  # longer than all of it
        field(13, 2, b"\x01\xff"),  # no UTF-8
        field(13, 0, b"\x01"),  # a number where text belongs
        field(2, 2, b"\x01a"),
        field(2, 7, b""),
        b"\xff" * 12,
    ],
)
def test_damaged_requests_are_data_errors(message: bytes) -> None:
    with pytest.raises(DataError, match=r"seg\.npz: its request is damaged"):
        read_request(message, "seg.npz")
