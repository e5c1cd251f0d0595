"""The few system calls that Python has no function for, by ctypes. Linux on x86_64 and aarch64."""

import ctypes
import os
import platform

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID = 1, 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def machine() -> str:
    """The machine's architecture.

    Raises:
        OSError: one whose system call numbers are not written down here.

    """
    name = platform.machine()
    if name not in _CAPSET:
        raise OSError(f"no system call numbers for {name}; there are for {', '.join(_CAPSET)}")
    return name


def checked(result: int, what: str) -> int:
    """Raise OSError, naming the call, where one returned -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *args: object, what: str) -> int:
    """Make a system call by its number."""
    return checked(_libc.syscall(ctypes.c_long(number), *args), what)


def prctl(option: int, value: object, third: object = 0) -> None:
    """Set something of this process."""
    zero = ctypes.c_ulong(0)
    second = ctypes.c_ulong(value) if isinstance(value, int) else value
    last = ctypes.c_ulong(third) if isinstance(third, int) else third
    checked(_libc.prctl(option, second, last, zero, zero), f"prctl({option})")


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name."""
    checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Attach a file system, or a path elsewhere, at ``target``."""
    checked(
        _libc.mount(
            source.encode(),
            target.encode(),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mount {target}",
    )


def make_read_only(target: str, *, recursive: bool = True) -> None:
    """Make a mount, and those below it, read-only and without set-user-id (Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    syscall(
        _MOUNT_SETATTR,
        ctypes.c_int(_AT_FDCWD),
        target.encode(),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        what=f"mount_setattr {target}",
    )


def pivot_root_here() -> None:
    """Make the current directory, a mount, the root, and let go of the old one."""
    syscall(_PIVOT_ROOT[machine()], b".", b".", what="pivot_root")
    checked(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability, in every set, for good."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == -1:
            break  # past the last one, or no CAP_SETPCAP: then no_new_privs keeps exec from raising
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    syscall(_CAPSET[machine()], ctypes.byref(header), ctypes.byref(none), what="capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
