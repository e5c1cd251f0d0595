"""Landlock: a process gives up the file system but for the paths that it names (Linux 6.2).

No privilege needed. It also keeps a process from looking into others that are not so confined,
/proc/PID/environ included. https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
from collections.abc import Iterable

from entropyfloor.sandbox.inside.kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_TRUNCATE_ABI = 3  # before it, a file could be emptied by opening it for reading with O_TRUNC
_NETWORK_ABI, _DEVICES_ABI, _SCOPE_ABI = 4, 5, 6
_READ_DIR = 1 << 3
_ON_FILES = (1 << 0) | (1 << 2)  # execute, read
_WRITE_FILE = 1 << 1
_ALL_UP_TO_TRUNCATE = (1 << 15) - 1
_IOCTL_DEVICE = 1 << 15
_TCP_BIND_CONNECT = 0b11
_SCOPE_ABSTRACT_UNIX_AND_SIGNALS = 0b11


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_abi() -> int:
    """Which version the kernel offers; 0 where it is too old or off."""
    try:
        abi = syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1), what="landlock")
    except OSError:
        return 0
    return abi if abi >= _TRUNCATE_ABI else 0


def confine_files(
    *, readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]
) -> None:
    """Leave this process only these paths, what lies below them included.

    Raises:
        OSError: the kernel has no Landlock that covers truncation.

    """
    abi = landlock_abi()
    if not abi:
        raise OSError("the kernel offers no Landlock of version 3 or later")
    handled = _ALL_UP_TO_TRUNCATE | (_IOCTL_DEVICE if abi >= _DEVICES_ABI else 0)
    attributes = (ctypes.c_uint64 * 3)(
        handled,
        _TCP_BIND_CONNECT if abi >= _NETWORK_ABI else 0,
        _SCOPE_ABSTRACT_UNIX_AND_SIGNALS if abi >= _SCOPE_ABI else 0,
    )
    size = 24 if abi >= _SCOPE_ABI else 16 if abi >= _NETWORK_ABI else 8
    ruleset = syscall(
        _CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint(0), what="landlock"
    )
    for path in readable:
        _allow(ruleset, path, _ON_FILES | (_READ_DIR if os.path.isdir(path) else 0))
    for path in writable:
        _allow(ruleset, path, _ALL_UP_TO_TRUNCATE)
    for path in devices:
        _allow(ruleset, path, _ON_FILES | _WRITE_FILE)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0), what="landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = _PathBeneath(rights, parent)
    path_beneath = 1
    syscall(
        _ADD_RULE,
        ctypes.c_int(ruleset),
        ctypes.c_uint(path_beneath),
        ctypes.byref(rule),
        ctypes.c_uint(0),
        what=f"landlock rule for {path}",
    )
    os.close(parent)
