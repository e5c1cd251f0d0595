"""Values between the process that runs a program and the one that tests it.

Data go by value, as JSON of tagged lists, so what arrives is made of Python's own types whatever
the sender's classes claim: an overridden ``__eq__`` does not travel. Everything else goes as a
reference to an object of the sender, see :mod:`.peer`. Nothing received is ever unpickled.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import sys
from collections.abc import Callable
from typing import Any

Encoded = Any  # None, bool, int, float, str, or a list [tag, ...]

_CONTAINERS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
# Exact types that travel as plain numbers and text: what is written of one, and how it is read.
_PLAIN: dict[type, tuple[Callable[[Any], list[Any]], Callable[..., Any]]] = {
    complex: (lambda value: [value.real, value.imag], complex),
    decimal.Decimal: (lambda value: [str(value)], decimal.Decimal),
    datetime.timedelta: (lambda d: [d.days, d.seconds, d.microseconds], datetime.timedelta),
    **{
        kind: (lambda value: [value.isoformat()], kind.fromisoformat)
        for kind in (datetime.date, datetime.datetime, datetime.time)
    },
}
_PLAIN_TAGS = {kind.__name__: read for kind, (_, read) in _PLAIN.items()}
_JSON_INTEGER = 1 << 63  # longer ones go as hex: Python limits the digits of a decimal


def encode(value: Any, refer: Callable[[Any], Encoded]) -> Encoded:
    """Make JSON of a value; ``refer`` gives the form of what cannot go by value."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_JSON_INTEGER < number < _JSON_INTEGER else ["int", hex(number)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    for tag, base in _CONTAINERS.items():
        if isinstance(value, base):
            return [tag, [encode(item, refer) for item in base.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[encode(k, refer), encode(v, refer)] for k, v in dict.items(value)]]
    return _encode_rare(value, kind, refer)


def _encode_rare(value: Any, kind: type, refer: Callable[[Any], Encoded]) -> Encoded:
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", bytes(value).hex()]
    if kind in _PLAIN:
        return [kind.__name__, *_PLAIN[kind][0](value)]
    if kind is range or kind is slice:
        parts = value.start, value.stop, value.step
        return [kind.__name__, *(encode(n, refer) for n in parts)]
    if value is Ellipsis or value is NotImplemented:
        return ["constant", repr(value)]
    if kind is fractions.Fraction:
        return ["fraction", encode(value.numerator, refer), encode(value.denominator, refer)]
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind.__module__ == "numpy":
        if isinstance(value, numpy.generic) and kind is not numpy.void:
            return encode(value.item(), refer)
        if kind is numpy.ndarray and value.dtype.kind in "biufc":
            return ["ndarray", value.dtype.str, list(value.shape), value.tobytes().hex()]
    if isinstance(value, type):
        name: str = value.__name__
        if getattr(builtins, name, None) is value:
            return ["builtin", name]
    return refer(value)


def decode(form: Encoded, resolve: Callable[[Encoded], Any]) -> Any:
    """Undo :func:`encode`; ``resolve`` finds what a reference means.

    Raises:
        ValueError, TypeError, ...: the form is not one of ours.

    """
    if not isinstance(form, list):
        return form
    tag = form[0]
    if tag in _CONTAINERS:
        return _CONTAINERS[tag]([decode(item, resolve) for item in form[1]])
    if tag == "dict":
        return {decode(k, resolve): decode(v, resolve) for k, v in form[1]}
    if tag == "int":
        return int(form[1], 16)
    if tag in {"bytes", "bytearray"}:
        return getattr(builtins, tag).fromhex(form[1])
    if tag in _PLAIN_TAGS:
        return _PLAIN_TAGS[tag](*form[1:])
    if tag in {"range", "slice"}:
        return getattr(builtins, tag)(*(decode(n, resolve) for n in form[1:]))
    if tag == "constant":
        return {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[form[1]]
    if tag == "fraction":
        return fractions.Fraction(decode(form[1], resolve), decode(form[2], resolve))
    if tag == "ndarray":
        import numpy

        kind = numpy.dtype(form[1])
        if kind.kind not in "biufc":  # never objects: they would be pointers
            raise ValueError(f"array of {kind}")
        return numpy.frombuffer(bytearray.fromhex(form[3]), dtype=kind).reshape(form[2])
    if tag == "builtin":
        kind = getattr(builtins, form[1])
        if type(kind) is not type:
            raise ValueError(f"{form[1]} is not a built-in class")
        return kind
    return resolve(form)


def update_in_place(old: Any, new: Any) -> None:
    """Make a list, dict, set, bytearray or deque equal to its copy that came back from a call."""
    if isinstance(old, list) and isinstance(new, list):
        for mine, theirs in zip(old, new, strict=False):
            update_in_place(mine, theirs)
        old[:] = [_kept(mine, theirs) for mine, theirs in zip(old, new, strict=False)] + new[
            len(old) :
        ]
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() & new.keys():
            update_in_place(old[key], new[key])
        merged = {key: _kept(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(merged)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, collections.deque) and isinstance(new, collections.deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, tuple) and isinstance(new, tuple):
        for mine, theirs in zip(old, new, strict=False):
            update_in_place(mine, theirs)


def _kept(mine: Any, theirs: Any) -> Any:
    """Our own object where it now holds what theirs does, so that identities survive."""
    changed = type(mine) is type(theirs) and is_mutable(mine) and not isinstance(mine, tuple)
    return mine if changed else theirs


def is_mutable(value: Any) -> bool:
    """Whether a call can change a value that went by copy."""
    if isinstance(value, tuple):
        return any(is_mutable(item) for item in value)
    return isinstance(value, list | dict | set | bytearray | collections.deque)
