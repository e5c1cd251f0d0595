"""Calls between the judge, which holds the tests, and the process that runs the program.

Both ends of one socket. Values travel by copy (:mod:`.wire`); an object that cannot is named by a
number and the other end holds a :class:`Remote` for it, which asks over the wire.

What a judge can be made to believe: equality of a remote object with a value of the judge's own is
False, whatever its class says; two remote objects are compared by their own class.

What a program can ask of the judge: to call a function that the tests gave it, and to use public
attributes of instances of the tests' own classes. Nothing else, so no frames, globals or source.
"""

import builtins
import importlib
import json
import operator
import socket
import struct
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType
from typing import Any

from entropyfloor.sandbox.inside.wire import decode, encode, is_mutable, update_in_place

JUDGE_MODULE = "tests"  # __name__ of the tests' namespace
_LARGEST_MESSAGE = 64 << 20

_BITS = ["and_", "or_", "xor", "lshift", "rshift"]
_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", *_BITS]
_UNARY = ["neg", "pos", "abs", "invert", "index"]
_ITEMS = ["getitem", "setitem", "delitem", "contains", "len", "iter", "next"]
_CONVERSIONS = ["bool", "str", "repr", "int", "float"]
_COMPARE = ["eq", "ne", "lt", "le", "gt", "ge"]
_ATTRIBUTES = ["isinstance", "getattr", "setattr"]
OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name, None) or getattr(builtins, name)
    for name in [*_BINARY, *_UNARY, *_COMPARE, *_ITEMS, *_CONVERSIONS, *_ATTRIBUTES]
}


class OtherSideGone(BaseException):
    """The process at the other end ended; no test may swallow it as an Exception."""


class ProgramExit(BaseException):
    """The program raised SystemExit or its like, seen from the tests."""


class Remote:
    """An object of the other process."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: "Peer", number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there."""
        return self._peer.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Read an attribute there; of the special ones only the name, or copying would ask."""
        if name.startswith("__") and name not in {"__name__", "__enter__", "__exit__"}:
            raise AttributeError(name)
        return self._peer.request("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute there."""
        self._peer.request("setattr", self, name, value)

    def __hash__(self) -> int:
        """By identity: the other side's ``__hash__`` is not asked."""
        return hash((id(self._peer), self._number))

    def __instancecheck__(self, instance: Any) -> bool:
        """Whether a remote object is an instance of this remote class; own values never are."""
        return isinstance(instance, Remote) and bool(
            self._peer.request("isinstance", instance, self)
        )

    def __enter__(self) -> Any:
        """Enter it there."""
        return self._peer.request("getattr", self, "__enter__")()

    def __exit__(self, *_: Any) -> None:
        """Leave it there; an exception of this side is not handed over."""
        self._peer.request("getattr", self, "__exit__")(None, None, None)


def _forward(special: str, name: str, arguments: int) -> None:
    if name in _COMPARE:

        def method(self: Remote, other: Any) -> Any:
            if isinstance(other, Remote) and other._peer is self._peer:
                return self._peer.request(name, self, other)
            return NotImplemented

    elif arguments < 0:

        def method(self: Remote, other: Any) -> Any:
            return self._peer.request(name, other, self)

    else:

        def method(self: Remote, *others: Any) -> Any:  # type: ignore[misc]
            return self._peer.request(name, self, *others)

    setattr(Remote, special, method)


for _name in _BINARY:
    _forward(f"__{_name.rstrip('_')}__", _name, 2)
    _forward(f"__r{_name.rstrip('_')}__", _name, -2)
for _name in [*_UNARY, *_COMPARE, *_ITEMS, *_CONVERSIONS]:
    _forward(f"__{_name}__", _name, 1)


class Peer:
    """One end. ``guarded``: this is the judge, which answers little and believes little."""

    def __init__(self, channel: socket.socket, *, guarded: bool) -> None:
        self._channel, self._incoming = channel, channel.makefile("rb")
        self._guarded = guarded
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}  # id of an own object -> its number
        self._remotes: dict[int, Remote] = {}
        self._exceptions: dict[tuple[str, str], type[BaseException]] = {}
        self.calls = 0
        self.extra: dict[str, Callable[..., Any]] = {}  # further requests that this end answers

    # -- asking ---------------------------------------------------------------------------------

    def request(self, name: str, *args: Any) -> Any:
        """Have the other end do something; meanwhile answer what it asks."""
        self._send(["ask", name, [encode(a, self._refer) for a in args]])
        return self._reply(passes_stop=name == "next")[0]

    def call(self, remote: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a remote object; what it did to mutable arguments is done to ours."""
        self.calls += 1
        arguments = [list(args), kwargs]
        self._send(["ask", "call", [encode(x, self._refer) for x in (remote, *arguments)]])
        result, after = self._reply(passes_stop=False)
        if after is not None:
            update_in_place(arguments, after)
        return result

    def serve(self) -> None:
        """Answer until the other end is gone."""
        while True:
            try:
                message = self._receive()
            except OtherSideGone:
                return
            self._answer(message)

    def _reply(self, *, passes_stop: bool) -> tuple[Any, Any]:
        while True:
            message = self._receive()
            kind = message[0]
            if kind == "ask":
                self._answer(message)
            elif kind == "value":
                after = None if message[2] is None else decode(message[2], self._resolve)
                return decode(message[1], self._resolve), after
            else:
                raise self._exception(message, passes_stop)

    # -- answering ------------------------------------------------------------------------------

    def _answer(self, message: Any) -> None:
        try:
            name = message[1]
            args = [decode(form, self._resolve) for form in message[2]]
            after = None
            if name == "call":
                function, positional, keywords = args
                if self._guarded and not isinstance(
                    function, FunctionType | MethodType | BuiltinFunctionType | type
                ):
                    raise TypeError("not a function of the tests")
                result = function(*positional, **keywords)
                if any(is_mutable(x) for x in (*positional, *keywords.values())):
                    after = encode([positional, keywords], self._refer)
            elif name in self.extra:
                result = self.extra[name](*args)
            else:
                if self._guarded:
                    _refuse_private(name, args)
                result = OPERATORS[name](*args)
            reply = ["value", encode(result, self._refer), after]
        except OtherSideGone:
            raise
        except BaseException as error:  # SystemExit in a program is an answer too
            reply = self._error_form(error)
        try:
            self._send(reply)
        except (RecursionError, ValueError, TypeError) as error:
            self._send(self._error_form(error))

    def _error_form(self, error: BaseException) -> list[Any]:
        try:
            args = [encode(a, self._refer) for a in error.args]
        except Exception:
            args = []
        return ["error", type(error).__name__, _builtin_base(type(error)), args]

    def _exception(self, message: Any, passes_stop: bool) -> BaseException:
        name, base = str(message[1]), str(message[2])
        args = tuple(decode(a, self._resolve) for a in message[3])
        kind = self._exception_class(name, base)
        if not issubclass(kind, Exception):
            return ProgramExit(f"{name}{args}")
        if issubclass(kind, StopIteration) and not passes_stop:
            # Inside map() it would end the tests' loop early, and all() of nothing is True.
            return RuntimeError("the program raised StopIteration")
        error = kind.__new__(kind, *args)
        error.args = args
        return error

    def _exception_class(self, name: str, base: str) -> type[BaseException]:
        root = getattr(builtins, base, None)
        if not (isinstance(root, type) and issubclass(root, BaseException)):
            root = Exception
        if name == root.__name__:
            return root
        return self._exceptions.setdefault((name, base), type(name, (root,), {}))

    # -- references -----------------------------------------------------------------------------

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Remote) and value._peer is self:
            return ["yours", value._number]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", value.__name__, _builtin_base(value)]
        if self._guarded and isinstance(value, BuiltinFunctionType | type | FunctionType):
            module = getattr(value, "__module__", None) or ""
            if module.partition(".")[0] in sys.stdlib_module_names:
                return ["library", module, value.__qualname__]
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self._objects) + 1
            self._objects[number] = value  # kept alive, so that its id stays its own
            self._numbers[id(value)] = number
        return ["mine", number]

    def _resolve(self, form: Any) -> Any:
        tag = form[0]
        if tag == "yours":
            return self._objects[form[1]]
        if tag == "mine":
            number = form[1]
            if number not in self._remotes:
                self._remotes[number] = Remote(self, int(number))
            return self._remotes[number]
        if tag == "exception":
            return self._exception_class(str(form[1]), str(form[2]))
        if tag == "library" and not self._guarded:
            target: Any = importlib.import_module(form[1])
            for part in form[2].split("."):
                target = getattr(target, part)
            return target
        raise ValueError(f"no such form: {tag!r}")

    # -- the wire -------------------------------------------------------------------------------

    def _send(self, message: list[Any]) -> None:
        body = json.dumps(message).encode()
        if len(body) > _LARGEST_MESSAGE:
            raise ValueError(f"a value of {len(body)} bytes is too large to hand over")
        try:
            self._channel.sendall(struct.pack("!I", len(body)) + body)
        except OSError as error:
            raise OtherSideGone from error

    def _receive(self) -> Any:
        (length,) = struct.unpack("!I", self._exactly(4))
        if length > _LARGEST_MESSAGE:
            raise OtherSideGone
        message = json.loads(self._exactly(length))
        if not (isinstance(message, list) and message and message[0] in {"ask", "value", "error"}):
            raise OtherSideGone
        return message

    def _exactly(self, length: int) -> bytes:
        try:
            content = self._incoming.read(length)
        except OSError as error:
            raise OtherSideGone from error
        if len(content) < length:
            raise OtherSideGone
        return content


def _builtin_base(kind: type) -> str:
    return next(c.__name__ for c in kind.__mro__ if getattr(builtins, c.__name__, None) is c)


def _refuse_private(name: str, args: list[Any]) -> None:
    """The judge's rule for what a program may do with an object of the tests."""
    target = args[0] if args else None
    if name in {"iter", "next"} and isinstance(target, GeneratorType):
        return
    if name == "isinstance":
        target = None
    elif name in {"getattr", "setattr"} and str(args[1]).startswith("_"):
        raise AttributeError(args[1])
    if type(target).__module__ != JUDGE_MODULE:
        raise TypeError(f"{name}: the program may not use this object of the tests")
