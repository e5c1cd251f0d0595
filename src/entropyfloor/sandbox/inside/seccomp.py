"""The system calls that a program may not make, as a seccomp filter; it cannot be taken off again.

Denied with EPERM: sockets, child processes, leaving the process group, signals to and inspection
of other processes, new namespaces and mounts, memory that no limit counts, asynchronous I/O rings
(they would go around this filter), and what only an administrator does. Calls newer than the table
answer "not implemented". Numbers: arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h of Linux.
"""

import ctypes
import errno
import functools
import os
import struct

from entropyfloor.sandbox.inside.kernel import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, machine, prctl

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_NEWEST = 450  # set_mempolicy_home_node: the last call that was read through for this table
_KILL, _DENY, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

# name: x86_64, aarch64 (-1: that architecture does not have it)
_DENIED = """
socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242,
sendmsg 46 211, sendmmsg 307 269,
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440,
process_mrelease 448 448, kcmp 312 272, pidfd_open 434 434, pidfd_getfd 438 438,
pidfd_send_signal 424 424, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
setsid 112 157, setpgid 109 154, setpriority 141 140, ioprio_set 251 30, sched_setaffinity 203 122,
sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, migrate_pages 256 238,
move_pages 279 239,
mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, unshare 272 97, setns 308 268,
fsopen 430 430, fsmount 432 432, fsconfig 431 431, fspick 433 433, move_mount 429 429,
open_tree 428 428, mount_setattr 442 442, name_to_handle_at 303 264, open_by_handle_at 304 265,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425,
io_uring_enter 426 426, io_uring_register 427 427, keyctl 250 219, add_key 248 217,
request_key 249 218,
memfd_create 319 279, memfd_secret 447 447, shmget 29 194, shmat 30 196, semget 64 190,
msgget 68 186, mq_open 240 180, mq_unlink 241 181,
init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104,
kexec_file_load 320 294, reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89,
quotactl 179 60, quotactl_fd 443 443, syslog 103 116, settimeofday 164 170, clock_settime 227 112,
adjtimex 159 171, clock_adjtime 305 266, sethostname 170 161, setdomainname 171 162, iopl 172 -1,
ioperm 173 -1, vhangup 153 58, personality 135 92, lookup_dcookie 212 18, fanotify_init 300 262,
sync 162 81, syncfs 306 267
"""
_FORKS = "fork 57 -1, vfork 58 -1"
# Landlock does not cover these; a program that shares our user id could use them on our files.
_METADATA = """
chmod 90 -1, fchmod 91 52, fchmodat 268 53, chown 92 -1, lchown 94 -1, fchown 93 55,
fchownat 260 54, utime 132 -1, utimes 235 -1, utimensat 280 88, futimesat 261 -1, setxattr 188 5,
lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
"""
_WRITES = """
openat2 437 437, creat 85 -1, mkdir 83 -1, mkdirat 258 34, mknod 133 -1, mknodat 259 33, link 86 -1,
linkat 265 37, symlink 88 -1, symlinkat 266 36, rename 82 -1, renameat 264 38, renameat2 316 276,
unlink 87 -1, unlinkat 263 35, rmdir 84 -1, truncate 76 45
"""
_WITH_ARGUMENTS = """
clone 56 220, clone3 435 435, kill 62 129, tgkill 234 131, prlimit64 302 261, prctl 157 167,
fcntl 72 25, ioctl 16 29, sendto 44 206, open 2 -1, openat 257 56
"""

_CLONE_THREAD = 0x10000
_CLONE_NAMESPACES = 0x7E020080
_PRCTL = (1, 4, 36, 0x59616D61)  # parent-death signal, dumpable, subreaper, ptracer
_FCNTL = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: have the kernel signal another process
_IOCTL = (0x5412, 0x541C, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP
_BLOCK = 64  # at most 2 * 64 + 1 instructions: a jump reaches 255
_WRITE_FLAGS = 0x3 | 0x40 | 0x200  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC

_Instruction = tuple[int, int, int, int]
_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06


def install_filter(*, may_fork: bool, may_signal: bool, metadata: bool, writes: bool) -> None:
    """Deny the calls of this module to this process and all it becomes.

    Args:
        may_fork: allow child processes (threads always are).
        may_signal: allow kill() of others; for a process id namespace of the program's own.
        metadata: allow chmod, chown, utime and extended attributes.
        writes: allow files to be opened for writing, made, renamed and removed.

    """
    rules = _filter(may_fork=may_fork, may_signal=may_signal, metadata=metadata, writes=writes)
    code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(buffer))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    mode_filter = 2
    prctl(PR_SET_SECCOMP, mode_filter, ctypes.c_char_p(header))


def _filter(
    *, may_fork: bool, may_signal: bool, metadata: bool, writes: bool
) -> list[_Instruction]:
    here = machine()
    numbers = _numbers(_WITH_ARGUMENTS, here)
    deny = (_RETURN, 0, 0, _DENY | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    missing = (_RETURN, 0, 0, _DENY | errno.ENOSYS)
    pid = os.getpid()

    rules: list[_Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH[here]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        deny,
        (_ABOVE, 0, 1, _NEWEST),
        missing,
    ]

    def when(name: str, *body: _Instruction) -> None:
        if name in numbers:
            rules.extend([(_EQUAL, 0, len(body), numbers[name]), *body])

    def only(argument: int, *values: int) -> list[_Instruction]:
        """Allow if the argument is one of the values, else deny."""
        tests = [(_EQUAL, len(values) - 1 - i + 1, 0, v) for i, v in enumerate(values)]
        return [_load(argument), *tests, deny, allow]

    def unless(argument: int, *values: int) -> list[_Instruction]:
        """Deny if the argument is one of the values, else allow."""
        tests = [(_EQUAL, len(values) - 1 - i + 1, 0, v) for i, v in enumerate(values)]
        return [_load(argument), *tests, allow, deny]

    when("clone3", missing)  # its flags lie in memory, out of sight; C libraries then use clone
    if may_fork:
        when("clone", _load(0), (_ANY_BIT, 0, 1, _CLONE_NAMESPACES), deny, allow)
    else:
        when("clone", _load(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), deny, allow)
    if not may_signal:
        when("kill", *only(0, pid))
        when("tgkill", *only(0, pid))
    when("prlimit64", *only(0, 0, pid))
    when("prctl", *unless(0, *_PRCTL))
    when("fcntl", *unless(1, *_FCNTL))
    when("ioctl", *unless(1, *_IOCTL))
    # A datagram socket of socketpair() could send to any address: the address must be null.
    when("sendto", _load(4), (_EQUAL, 1, 0, 0), deny, _load(4, high=True), (_EQUAL, 1, 0, 0), deny)
    rules.append((_LOAD, 0, 0, 0))
    denied = dict(_numbers(_DENIED, here))
    if not may_fork:
        denied |= _numbers(_FORKS, here)
    if not metadata:
        denied |= _numbers(_METADATA, here)
    if not writes:
        denied |= _numbers(_WRITES, here)
        for name, argument in (("open", 1), ("openat", 2)):
            when(name, _load(argument), (_ANY_BIT, 0, 1, _WRITE_FLAGS), deny, allow)
    # In blocks that are jumped over: at installation the kernel walks the filter for every call
    # there is, and that was a tenth of a program's whole cost.
    for block in range(0, _NEWEST + 1, _BLOCK):
        inside = [n for n in sorted(denied.values()) if block <= n < block + _BLOCK]
        body = [rule for n in inside for rule in ((_EQUAL, 0, 1, n), deny)]
        rules += [(_AT_LEAST, len(body) + 1, 0, block + _BLOCK), *body, allow]
    return [*rules, allow]


def _load(argument: int, *, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * argument + 4 * high)


@functools.cache
def _numbers(table: str, here: str) -> dict[str, int]:
    column = {"x86_64": 1, "aarch64": 2}[here]
    rows = [row.split() for row in table.replace("\n", " ").split(",")]
    return {row[0]: int(row[column]) for row in rows if int(row[column]) >= 0}
