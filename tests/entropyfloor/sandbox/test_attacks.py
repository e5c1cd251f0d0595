"""Hostile programs at every level of isolation: no pass, no harm, nothing left."""

import os
import socket
import threading
import time

import pytest
from leftovers import SHORT, processes_with

from entropyfloor.sandbox import Limits, LocalSandbox, Program

TESTS = "assert f(20) == 41\n"
RIGHT = "def f(x):\n    return 2 * x + 1\n"


def run(sandbox, code, tests=TESTS, **more):
    return sandbox.run([Program(code, tests, **more)])[0]


def settled(sandbox, marked_folder):
    """Only idle zygotes are left, no folder, and the next program runs."""
    assert len(processes_with(marked_folder)) <= 3 * sandbox.workers  # of up to three levels
    assert os.listdir(marked_folder) == []
    assert run(sandbox, RIGHT).passed


LOOPS = {
    "infinite loop": ("while True: pass", {"timeout"}),
    "loop that ignores the signal": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        {"exited", "timeout"},  # killed a second later, or by the wall
    ),
    "sleep": ("import time\ntime.sleep(1000)", {"timeout"}),
    "endless print": ("while True: print('all tests passed')", {"output"}),
    "endless error output": ("import os\nwhile True: os.write(2, b'x' * 65536)", {"output"}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_what_does_not_end_is_ended(sandbox, marked_folder, name):
    code, statuses = LOOPS[name]
    started = time.monotonic()
    outcome = run(sandbox, code)
    assert outcome.status in statuses, outcome
    assert time.monotonic() - started < SHORT.wall_seconds + 3
    assert len(outcome.output) <= 8192
    settled(sandbox, marked_folder)


BOMBS = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "daemon by two forks": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
""",
    "new session": "import os\nos.setsid()\nwhile True: pass",
    "new process group": "import os\nos.setpgid(0, 0)\nwhile True: pass",
    "subprocess": "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "vfork": "import ctypes\nassert ctypes.CDLL(None).syscall(58) > 0",
    "clone3": "import ctypes\nassert ctypes.CDLL(None).syscall(435, b'\\0' * 88, 88) > 0",
    "own namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "100 GB at once": "x = bytearray(100 << 30)",
    "100 GB bit by bit": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "threads": """
import threading, time
while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""",
    "memory files": """
import os
files = [os.memfd_create(str(n)) for n in range(50)]
""",
    "shared memory": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 1 << 30, 0o1777) >= 0",
    "open files": "files = [open('/dev/null') for _ in range(10000)]",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef g(n): return g(n + 1)\ng(0)",
    "crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_grows_is_stopped(sandbox, marked_folder, name):
    outcome = run(sandbox, BOMBS[name] + "\n" + RIGHT)
    assert not outcome.passed
    assert outcome.status in {"failed", "exited", "timeout"}, outcome
    settled(sandbox, marked_folder)


DISKS = {
    "one file": "with open('a', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))",
    "many files": """
n = 0
while True:
    n += 1
    with open(str(n), 'wb') as f: f.write(b'x' * (1 << 20))
""",
    "empty files": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'w').close()",
    "deep folders": "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
    "closed folders": "import os\nos.mkdir('d')\nopen('d/f', 'w').close()\nos.chmod('d', 0)\n1 / 0",
}


@pytest.mark.parametrize("name", DISKS)
def test_the_disk_is_not_filled_and_the_folder_goes(sandbox, marked_folder, name):
    free = os.statvfs(marked_folder).f_bavail * os.statvfs(marked_folder).f_frsize
    outcome = run(sandbox, DISKS[name] + "\n" + RIGHT)
    assert outcome.status in {"failed", "disk", "timeout", "exited"}, outcome
    after = os.statvfs(marked_folder).f_bavail * os.statvfs(marked_folder).f_frsize
    assert free - after < 1 << 30
    settled(sandbox, marked_folder)


def test_the_environment_is_not_inherited(sandbox, monkeypatch):
    monkeypatch.setenv("ENTROPYFLOOR_SECRET", "swordfish")
    sandbox.close()  # the next zygote is started with the secret in our environment
    ours = os.getpid()
    code = f"""
import os
def environment(): return dict(os.environ)
def look(path):
    with open(path, 'rb') as file: return file.read()
def parents():
    out = b''
    for pid in [{ours}, os.getppid(), 1, 'self', 'thread-self']:
        try: out += look(f'/proc/{{pid}}/environ')
        except OSError: pass
    return out
"""
    tests = f"""
assert 'ENTROPYFLOOR_SECRET' not in environment() and 'HOME' in environment()
assert b'swordfish' not in parents()
try: look('/proc/{ours}/environ')
except OSError: pass
else: raise AssertionError('the environment of the parent is open')
"""
    outcome = run(sandbox, code, tests)
    assert outcome.passed, outcome


def test_no_sockets(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        code = f"""
import socket, urllib.request
def tcp(): socket.create_connection(('127.0.0.1', {port}), timeout=1)
def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))
def unix(): socket.socket(socket.AF_UNIX).connect('/run/docker.sock')
def netlink(): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
def web(): urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)
def pair():
    a, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.sendto(b'x', '\\0somewhere')
"""
        tests = """
for attempt in (tcp, udp, unix, netlink, web, pair):
    try: attempt()
    except OSError as error: assert 'ermi' in str(error), error
    else: raise AssertionError('a socket')
"""
        outcome = run(sandbox, code, tests)
        assert outcome.passed, outcome
        with pytest.raises(TimeoutError):
            server.accept()


KILLS = ["os.kill(os.getppid(), 9)", "os.kill(1, 9)", "os.kill(-1, 9)", "os.killpg(0, 9)"]


@pytest.mark.parametrize("kill", [*KILLS, "os.kill(OURS, 9)", "os.kill(OURS, 15)"])
def test_no_one_else_is_killed(sandbox, marked_folder, kill):
    if os.getpid() == 1:
        pytest.skip("as process 1 we could not be killed anyway")
    before = set(processes_with(marked_folder))
    outcome = run(sandbox, f"import os\nOURS = {os.getpid()}\n{kill}\n{RIGHT}")
    assert outcome.status in {"failed", "exited", "passed"}, outcome
    assert run(sandbox, RIGHT).passed
    assert before & set(processes_with(marked_folder))


def test_no_limits_priority_or_memory_of_others(sandbox):
    ours = os.getpid()
    code = f"""
import ctypes, os, resource
def limits(): resource.prlimit({ours}, resource.RLIMIT_CPU, (1, 1))
def priority(): os.setpriority(os.PRIO_USER, 0, 19)
def attach():
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == -1: raise OSError('ptrace')
def memory(): open('/proc/%d/mem' % os.getppid(), 'rb').read(1)
def descriptors(): os.listdir('/proc/%d/fd' % os.getppid())
def outlive():
    if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == -1: raise OSError('prctl')
def root():
    for call in (lambda: os.setuid(0), lambda: os.chroot('/')):
        call()
    os.chown('/', 0, 0)
"""
    tests = """
for attempt in (limits, priority, attach, memory, descriptors, outlive, root):
    try: attempt()
    except OSError: pass
    else: raise AssertionError('not denied')
"""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    outcome = run(sandbox, code, tests)
    assert outcome.passed, outcome
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_nothing_outside_the_folder_changes(sandbox, tmp_path):
    os.chmod(tmp_path, 0o777)
    victim = tmp_path / "victim"
    victim.write_text("whole")
    os.chmod(victim, 0o666)
    inside_home = os.path.expanduser(f"~/entropyfloor-test-{os.getpid()}")
    code = f"""
import os, shutil
HERE, VICTIM, HOME = {str(tmp_path)!r}, {str(victim)!r}, {inside_home!r}
def make(): open(HERE + '/made', 'w').write('x')
def home(): open(HOME, 'w').write('x')
def up(): open('../' * 9 + HERE[1:] + '/up', 'w').write('x')
def over(): open(VICTIM, 'w').write('x')
def empty(): os.truncate(VICTIM, 0)
def delete(): os.remove(VICTIM)
def rename(): os.rename(VICTIM, VICTIM + '2')
def mode(): os.chmod(VICTIM, 0)
def times(): os.utime(VICTIM, (1, 1))
def tree(): shutil.rmtree(HERE)
def link():
    os.symlink(HERE, 'link')
    open('link/through', 'w').write('x')
def device(): open('/dev/shm/entropyfloor-test', 'w').write('x')
"""
    tests = """
for attempt in (make, home, up, over, empty, delete, rename, mode, times, tree, link, device):
    try: attempt()
    except OSError: pass
    else: raise AssertionError(attempt.__name__)
"""
    status = victim.stat()
    outcome = run(sandbox, code, tests)
    assert outcome.passed, outcome
    assert sorted(os.listdir(tmp_path)) == ["victim"]
    assert (victim.read_text(), victim.stat().st_mode) == ("whole", status.st_mode)
    assert victim.stat().st_mtime == status.st_mtime
    assert not os.path.exists(inside_home)


def test_its_own_folder_is_its_own(sandbox):
    code = """
import os, tempfile
def keep(text):
    with open('note', 'w') as file: file.write(text)
    with open('note') as file: return file.read()
def home(): return os.environ['HOME'] == os.getcwd() and os.listdir() == []
def temporary():
    with tempfile.TemporaryFile() as file: return file.write(b'x')
"""
    outcome = run(sandbox, code, "assert home()\n")
    assert outcome.passed, outcome
    outcome = run(sandbox, code, "assert keep('x') == 'x' and temporary() == 1\n")
    assert outcome.passed == (sandbox.isolation()[0] != "read-only"), outcome


def test_many_at_once_leave_nothing(sandbox, marked_folder):
    before = threading.active_count()
    codes = [RIGHT, "import os\nos._exit(0)", "import os\nos.fork()", "def f(x): return x"]
    outcomes = sandbox.run([Program(code, TESTS) for code in codes * 12])
    assert [o.passed for o in outcomes] == [True, False, False, False] * 12
    assert threading.active_count() == before
    settled(sandbox, marked_folder)


def test_processes_that_are_allowed_die_with_the_program(marked_folder):
    limits = Limits(wall_seconds=1.5, cpu_seconds=1, processes=8)
    sandbox = LocalSandbox(limits, workers=1, isolation="namespaces")
    try:
        sandbox.isolation()
    except ValueError as error:
        pytest.skip(f"not on this kernel: {error}")
    with sandbox:
        code = "import subprocess\ndef f(x): return int(subprocess.check_output(['echo', '41']))"
        assert run(sandbox, code).passed
        idle = set(processes_with(marked_folder))
        for name in ("fork bomb", "daemon by two forks"):
            assert not run(sandbox, BOMBS[name]).passed
            assert set(processes_with(marked_folder)) == idle
        daemon = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
"""
        assert run(sandbox, daemon + RIGHT).passed  # and yet its daemon does not stay
        assert set(processes_with(marked_folder)) == idle
