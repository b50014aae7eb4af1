"""Unpickling data that others wrote, with nothing of it executed.

A pickle is a program.  Here it can build dictionaries, lists, tuples, numbers, strings, bytes, NumPy arrays and
scalars, and the records that the caller names, and nothing else: every name that it asks for is looked up in a table of
stand-ins of this module, nothing is imported, and NumPy itself sees checked shapes, dtypes and bytes only.  Any other
name raises DataError that says which.

`dump_records` writes such pickles, records under the names of classes that need not be there.

Method: the Python documentation's restricted `find_class`; NumPy's pickle format is read here (protocols 2 to 5, both
names of its module, also as Python 2 wrote it).
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Protocol

import numpy as np

from apps.core.errors import DataError


class RecordType(Protocol):
    """A caller's record: a type made of the pickled values, which must not act on anything but them."""

    def __call__(self, *values: Any) -> Any: ...


class _Name:
    """What stands for a callable of the pickle; it can be called and not be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *values: Any) -> Any:
        return self._make(*values)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("changes a function")


class _Dtype:
    """A dtype as a pickle makes one: a code first, the byte order in a second step."""

    def __init__(self, code: Any, *options: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        if not re.fullmatch(r"[<>|=]?(O8?|[?]|[biufcSU]\d{0,6})", text):
            raise pickle.UnpicklingError(f"has an array of dtype {text!r}")
        self._code = text
        self._order = ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else str(state[1])
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"has an array of byte order {order!r}")
        self._order = order

    @property
    def of_objects(self) -> bool:
        return "O" in self._code

    def numpy(self) -> np.dtype[Any]:
        dtype = np.dtype(self._code)
        return dtype.newbyteorder("<" if self._order == "<" else ">") if self._order in ("<", ">") else dtype


class _Array:
    """An array as a pickle makes one: nothing first, then shape, dtype, order and content."""

    _state: tuple[Any, ...] | None = None

    def __init__(self, *placeholder: Any) -> None:
        """A pickle names the type, an empty shape and a code, none of which says anything."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def numpy(self, convert: Callable[[Any], Any]) -> np.ndarray[Any, np.dtype[Any]]:
        if self._state is None:
            raise pickle.UnpicklingError("has an array without content")
        _, shape, dtype, fortran, content = self._state
        return _filled(dtype, tuple(shape), "F" if fortran else "C", content, convert)


class _Record:
    """What stands for an instance of a caller's record until the pickle is read."""

    make: RecordType
    values: tuple[Any, ...]

    def __new__(cls, *values: Any) -> _Record:
        made = super().__new__(cls)
        made.values = values
        return made

    def __setstate__(self, state: Any) -> None:
        """Python 2 wrote named tuples with a second copy of their fields."""


def load_restricted(stream: IO[bytes], where: str, find_record: Callable[[str, str], RecordType | None]) -> Any:
    """The one object pickled at the stream's position.

    Args:
        stream: binary, at the pickle's first byte.
        where: names the file in errors.
        find_record: (module, name) of a class -> the caller's record for it, or None for a name it does not know.

    Raises DataError where the pickle asks for anything that is not data, or is damaged or truncated.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _NAMES:
                return _NAMES[module, name]
            record = find_record(module, name)
            if record is None:
                raise DataError(
                    f"{where}: refused to load {module}.{name}; expected plain values, NumPy arrays and known records"
                )
            return type("Record", (_Record,), {"make": staticmethod(record)})

        def persistent_load(self, pid: Any) -> Any:
            raise DataError(f"{where}: refused to load an object of elsewhere ({pid!r})")

    try:
        # Python 2 wrote the bytes of arrays as text.
        return _plain(Unpickler(stream, encoding="latin1").load(), {})
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{where}: is damaged or no result ({type(error).__name__}: {error}); fetch it again"
        ) from error


def dump_records(value: Any, names: Mapping[type, tuple[str, str]]) -> bytes:
    """The pickle (protocol 3) of dictionaries, lists, tuples, numbers, text, bytes, NumPy arrays and records.

    A record is a named tuple; `names` gives (module, class) under which its type is written.  Python's picklers import
    what they name, and a library that extends them (dill) changes what they write; this depends on neither.  NumPy's
    functions go under their names in version 1, which 2 reads too.  Raises TypeError for anything else.
    """

    def sequence(items: Iterable[Any], end: bytes) -> bytes:
        return pickle.MARK + b"".join(map(dump, items)) + end

    def dump(item: Any) -> bytes:
        kind = type(item)
        if kind in names:
            return _global(*names[kind]) + sequence(item, pickle.TUPLE) + pickle.NEWOBJ
        if kind in (np.ndarray, np.dtype) or isinstance(item, np.dtype):
            _, (first, *rest), state = item.__reduce__()
            name = ("numpy", "dtype") if isinstance(item, np.dtype) else ("numpy.core.multiarray", "_reconstruct")
            return _global(*name) + sequence((first, *rest), pickle.TUPLE) + pickle.REDUCE + dump(state) + pickle.BUILD
        if item is np.ndarray:
            return _global("numpy", "ndarray")
        if kind is dict:
            flat = [part for pair in item.items() for part in pair]
            return pickle.EMPTY_DICT + sequence(flat, pickle.SETITEMS)
        if kind is list:
            return pickle.EMPTY_LIST + sequence(item, pickle.APPENDS)
        if kind is tuple:
            return sequence(item, pickle.TUPLE)
        return _atom(item)

    return pickle.PROTO + bytes([3]) + dump(value) + pickle.STOP


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _atom(value: Any) -> bytes:
    """The opcodes of one value that holds no others."""
    constants = {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}
    if value is None or isinstance(value, bool):
        return constants[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return pickle.LONG1 + bytes([len(data)]) + data
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    if isinstance(value, bytes):
        return pickle.BINBYTES + struct.pack("<I", len(value)) + value
    raise TypeError(f"cannot write a {type(value).__name__}")


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """`value` with the stand-ins in it replaced; what is shared stays shared.  A cycle ends in RecursionError."""
    key = id(value)
    if key in done:
        return done[key]

    def convert(item: Any) -> Any:
        return _plain(item, done)

    result = value
    if isinstance(value, dict):
        result = {convert(k): convert(v) for k, v in value.items()}
    elif isinstance(value, list):
        result = [convert(item) for item in value]
    elif isinstance(value, tuple):
        result = tuple(convert(item) for item in value)
    elif isinstance(value, _Array):
        result = value.numpy(convert)
    elif isinstance(value, _Record):
        result = value.make(*(convert(item) for item in value.values))
    elif isinstance(value, type | _Name | _Dtype):
        raise pickle.UnpicklingError(f"has a {type(value).__name__} where a value belongs")
    done[key] = result
    return result


def _filled(
    dtype: Any, shape: tuple[Any, ...], order: str, content: Any, convert: Callable[[Any], Any]
) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of these values, after checking that they fit each other."""
    if not isinstance(dtype, _Dtype) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"has an array of shape {shape!r} and dtype {dtype!r}")
    size = math.prod(shape)
    if dtype.of_objects:
        if not isinstance(content, list) or len(content) != size:
            raise pickle.UnpicklingError(f"has an array of shape {shape} with other content")
        objects = np.empty(size, object)
        for index, item in enumerate(content):
            objects[index] = convert(item)
        return objects.reshape(shape, order="F" if order == "F" else "C")
    data = content.encode("latin1") if isinstance(content, str) else bytes(content)
    expected = size * dtype.numpy().itemsize
    if len(data) != expected:
        raise pickle.UnpicklingError(f"has an array of shape {shape} with {len(data)} bytes, not {expected}")
    flat = np.frombuffer(data, dtype.numpy(), size)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


def _scalar(dtype: Any, content: Any) -> Any:
    return _filled(dtype, (), "C", content, lambda item: item)[()]


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return _filled(dtype, tuple(shape), str(order), content, lambda item: item)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"has text in {encoding!r}")
    return text.encode("latin1")


# Every name that a pickle may ask for beside the caller's records: NumPy's, under the modules that hold them in version
# 1 and 2, and what Python itself writes for ordered dictionaries and for bytes in old protocols.
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Name(_Dtype),
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _Name(_encode),
    **{
        (f"{package}.{module}", name): _Name(make)
        for package in ("numpy.core", "numpy._core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
