"""Three ways to shut a program in; which one a kernel allows is tried out, not guessed.

    namespaces   own root file system (the interpreter, read-only, and a folder in memory), own
                 process ids, own empty network; as root without a user namespace, else with one
    landlock     no namespaces: Landlock leaves the interpreter to read and one folder to write
    read-only    neither: no file can be opened for writing anywhere, the folder included

Each adds resource limits, no capabilities, a user id of its own where we are root, and the seccomp
filter. All three need the last.
"""

import functools
import math
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from entropyfloor.sandbox.inside import kernel
from entropyfloor.sandbox.inside.landlock import confine_files
from entropyfloor.sandbox.inside.seccomp import install_filter

NAMESPACES, LANDLOCK, READ_ONLY = "namespaces", "landlock", "read-only"

BOX = "/box"  # a program's folder, where it has a file system of its own
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/nix/store")
_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_SMALL = "size=1m,nr_inodes=4k,mode=755"
_THREADS = 32
_HARNESS = 4  # zygote, guardian, judge and the program itself
_IDS, _FIRST_ID = 4000, 61184  # systemd's range for short-lived users: nobody's files


@dataclass(frozen=True)
class Confinement:
    """What one zygote found out about its machine, and applies to every program."""

    level: str
    user_namespace: bool
    user_id: int | None  # the program's own, where we may choose one

    def words(self) -> list[str]:
        """What is active, for a person."""
        namespaces = self.level == NAMESPACES
        network = "its own empty network namespace, and " if namespaces else ""
        files = {
            NAMESPACES: "own root: the interpreter, read-only, and a folder in memory",
            LANDLOCK: "Landlock: the interpreter to read, one temporary folder to write",
            READ_ONLY: "nothing can be written, not even in the temporary folder; reading is not "
            "restricted, /proc only by an audit hook",
        }[self.level]
        return [
            f"network: {network}seccomp denies every socket",
            f"files: {files}",
            "processes: "
            + ("own process ids, dead with the first of them; " if namespaces else "")
            + "seccomp denies children, leaving the group and signals to others",
            "user: "
            + (f"own id {self.user_id}" if self.user_id is not None else "ours")
            + (", in a user namespace" if self.user_namespace else "")
            + ", no capabilities",
        ]


def enclose(level: str, folder: str) -> Confinement:
    """Move this process, a zygote, to where programs shall run; ``folder`` will hold theirs.

    Raises:
        OSError: the kernel does not allow this level.

    """
    user, group = os.geteuid(), os.getegid()
    if level != NAMESPACES:
        interpreter_paths()  # found once, here; every program's process inherits the answer
        needed = (os.__file__, sys.executable, folder)
        drops = user == 0 and all(_others_may_read(path) for path in needed)
        return Confinement(level, False, _unprivileged_id() if drops else None)
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    in_user_namespace = user != 0
    try:
        kernel.unshare(flags | (kernel.CLONE_NEWUSER if in_user_namespace else 0))
    except OSError:
        if in_user_namespace:
            raise
        in_user_namespace = True  # root without CAP_SYS_ADMIN, as in a container
        kernel.unshare(flags | kernel.CLONE_NEWUSER)
    if in_user_namespace:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _build_root()
    return Confinement(level, in_user_namespace, None if in_user_namespace else _unprivileged_id())


def _unprivileged_id() -> int:
    return _FIRST_ID + os.getpid() % _IDS


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _others_may_read(path: str) -> bool:
    """Whether a user without rights of its own reaches a file, symbolic links followed."""
    real = os.path.realpath(path)
    folders = [path, real]
    for start in (path, real):
        while start != "/":
            start = os.path.dirname(start)
            folders.append(start)
    return all(os.stat(p).st_mode & (0o1 if os.path.isdir(p) else 0o4) for p in folders)


@functools.cache
def interpreter_paths() -> tuple[str, ...]:
    """What Python needs to read, shortest first, none below another."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    wanted = {*_SYSTEM, *prefixes, os.path.dirname(os.path.realpath(os.__file__))}
    kept: list[str] = []
    for path in sorted((os.path.abspath(p) for p in wanted if os.path.exists(p)), key=len):
        if path != "/" and not any(path == k or path.startswith(k + "/") for k in kept):
            kept.append(path)
    return (*kept, *(f for f in _FILES if os.path.exists(f)))


def _build_root() -> None:
    """Give this mount namespace a root that holds the interpreter and nothing of ours."""
    stage = "/proc"  # there on every Linux, and not needed from here on
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", stage, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _SMALL)
    for path in interpreter_paths():
        if os.path.islink(path) and os.path.dirname(path) == "/":  # /lib -> usr/lib
            os.symlink(os.readlink(path), stage + path)
        else:
            _bind(path, stage + path)
            kernel.make_read_only(stage + path)
    for path in _DEVICES:
        if os.path.exists(path):
            _bind(path, stage + path)
    os.mkdir(stage + BOX)
    if not os.path.lexists(stage + "/tmp"):
        os.symlink(BOX, stage + "/tmp")
    os.chdir(stage)
    kernel.pivot_root_here()
    kernel.make_read_only("/", recursive=False)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)


def open_box(confinement: Confinement, folder: str, disk: int) -> None:
    """In the process that a program descends from: its process ids, folder and user."""
    user, group = confinement.user_id, confinement.user_id
    if confinement.level == NAMESPACES:
        kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
        owner = f"uid={user},gid={group}" if user is not None else f"uid={os.getuid()}"
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        options = f"size={disk},nr_inodes={max(1024, disk >> 12)},mode=700,{owner}"
        kernel.mount("tmpfs", BOX, "tmpfs", flags, options)
    if user is not None and group is not None:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    os.chdir(folder)


def lock_down(confinement: Confinement, folder: str, limits: dict[str, Any]) -> None:
    """In the judge and in the program's process, last of all: from here on nothing comes back."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # nobody reads our memory or descriptors in /proc
    _limit(confinement, limits)
    kernel.drop_capabilities()
    if confinement.level == LANDLOCK:
        confine_files(
            readable=interpreter_paths(),
            writable=[folder],
            devices=[p for p in _DEVICES if os.path.exists(p)],
        )
    elif confinement.level == READ_ONLY:
        sys.addaudithook(_proc_hook())
    namespaces = confinement.level == NAMESPACES
    install_filter(
        may_fork=limits["processes"] > 1,
        may_signal=namespaces,
        metadata=namespaces,
        writes=confinement.level != READ_ONLY,
    )


def _limit(confinement: Confinement, limits: dict[str, Any]) -> None:
    cpu = math.ceil(limits["cpu_seconds"])
    values = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["disk"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if confinement.user_id is not None or confinement.user_namespace:
        # Counted per user id (and user namespace): elsewhere it would count all that we run.
        values[resource.RLIMIT_NPROC] = _HARNESS + limits["processes"] - 1 + _THREADS
    for which, value in values.items():
        soft, hard = value if isinstance(value, tuple) else (value, value)
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def _proc_hook() -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that keeps a program from /proc; code that means to can get around it."""
    paths = {"open", "os.listdir", "os.scandir", "os.chdir"}
    realpath, fsdecode = os.path.realpath, os.fsdecode

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in paths and args and isinstance(args[0], str | bytes):
            path = realpath(fsdecode(args[0]))
            if path == "/proc" or path.startswith("/proc/"):
                raise PermissionError(f"{path}: not for programs in the sandbox")
        elif event.startswith("ctypes.dlopen"):
            raise PermissionError("ctypes: not for programs in the sandbox")

    return hook
