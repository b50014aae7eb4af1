"""The settings of a google/ffn inference run, out of the serialised InferenceRequest that its results carry.

Field numbers and names are those of google/ffn's inference.proto; the wire format is that of protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from apps.core.errors import DataError

# Field number -> name and how to read it: a type of value, or the fields of a nested message.
_Fields = Mapping[int, tuple[str, Any]]

_VOLUME: _Fields = {1: ("volinfo", str), 2: ("decorator_specs", str), 3: ("hdf5", str)}
_VECTOR: _Fields = {1: ("x", int), 2: ("y", int), 3: ("z", int)}
_OPTIONS: _Fields = {
    1: ("init_activation", float),
    2: ("pad_value", float),
    3: ("move_threshold", float),
    4: ("consistency_threshold", float),
    5: ("disco_seed_threshold", float),
    6: ("min_boundary_dist", _VECTOR),
    7: ("segment_threshold", float),
    8: ("min_segment_size", int),
}
_REQUEST: _Fields = {
    2: ("image_mean", float),
    3: ("image_stddev", float),
    4: ("reference_histogram", str),
    9: ("movement_policy_name", str),
    10: ("movement_policy_args", str),
    11: ("model_name", str),
    12: ("model_args", str),
    13: ("model_checkpoint_path", str),
    14: ("inference_options", _OPTIONS),
    15: ("segmentation_output_dir", str),
    16: ("checkpoint_interval", int),
    17: ("seed_policy", str),
    19: ("seed_policy_args", str),
    24: ("image", _VOLUME),
    25: ("init_segmentation", _VOLUME),
    27: ("batch_size", int),
    28: ("concurrent_requests", int),
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_request(data: bytes, where: str) -> dict[str, Any]:
    """Names and values of the request's fields, nested messages as dictionaries; masks and alignment are left out.

    `where` names the source in errors.  Raises DataError where `data` is no such message.
    """
    try:
        return _message(data, _REQUEST)
    except (ValueError, struct.error) as error:
        raise DataError(f"{where}: its request is damaged ({error})") from error


def _message(data: bytes, fields: _Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, wire, content in _wire_fields(data):
        if number not in fields:
            continue
        name, kind = fields[number]
        if isinstance(kind, Mapping):
            found[name] = _message(_expect(content, wire, _BYTES, name), kind)
        elif kind is str:
            found[name] = _expect(content, wire, _BYTES, name).decode("utf-8")
        elif kind is float:
            # As a decimal of the precision that four bytes hold.
            found[name] = float(f"{struct.unpack('<f', _expect(content, wire, _FIXED32, name))[0]:.7g}")
        else:
            value = _expect(content, wire, _VARINT, name)
            found[name] = value - (1 << 64) if value >> 63 else value
    return found


def _expect(content: Any, wire: int, expected: int, name: str) -> Any:
    if wire != expected:
        raise ValueError(f"{name} is of wire type {wire}, not {expected}")
    return content


def _wire_fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, content) of a message.

    NumPy drops zero bytes at the end of a byte string, so a message that ends too early ended with zeros.
    """
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while shift < 70:
            byte = data[place] if place < len(data) else 0
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError("a number is too long")

    def take(length: int) -> bytes:
        nonlocal place
        if length > 2 * len(data) + 8:
            raise ValueError(f"a field is {length} bytes long")
        place += length
        return data[place - length : place].ljust(length, b"\0")

    while place < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            yield number, wire, varint()
        elif wire == _BYTES:
            yield number, wire, take(varint())
        elif wire in (_FIXED32, _FIXED64):
            yield number, wire, take(4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"a field is of the unknown wire type {wire}")
