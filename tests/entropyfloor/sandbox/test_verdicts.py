"""No program can talk itself into a pass."""

import pytest

from entropyfloor.sandbox import Program

TESTS = """
def check(candidate):
    assert candidate(3) == "expected-4711"
    assert all(candidate(n) == f"expected-{n * 1570 + 1}" for n in (3, 4))
    assert candidate([1]) != candidate([2])
"""


def run(sandbox, code, tests=TESTS, entry_point="f"):
    return sandbox.run([Program(code, tests, entry_point)])[0]


FAKES = {
    "sys.exit while loading": "import sys\ndef f(x): pass\nsys.exit(0)",
    "os._exit while loading": "import os\nos._exit(0)",
    "sys.exit in a call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit in a call": "import os\ndef f(x): os._exit(0)",
    "SystemExit in a call": "def f(x): raise SystemExit(0)",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "killing itself": "import os\ndef f(x): os.kill(os.getpid(), 9)",
    "exec of true": "import os\ndef f(x): os.execv('/bin/true', ['true'])",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): pass",
    "a marker": "print('passed'); print('{\"status\": \"passed\"}')\ndef f(x): print('OK')",
    "equal to all": """
class All:
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    def __hash__(self): return 0
def f(x): return All()
""",
    "a str equal to all": """
class Str(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    __hash__ = str.__hash__
def f(x): return Str()
""",
    "a metaclass equal to all": """
class Meta(type):
    def __eq__(self, other): return True
    def __hash__(self): return 0
class All(metaclass=Meta): pass
def f(x): return All
""",
    "a reflected operand": """
class R:
    def __eq__(self, other): return R()
    def __bool__(self): return True
    def __format__(self, spec): return ''
def f(x): return R()
""",
    "patched builtins": """
import builtins
builtins.all = builtins.any = lambda *a: True
builtins.AssertionError = KeyError
builtins.isinstance = lambda *a: True
def f(x): return None
""",
    "patched harness": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('entropyfloor'):
        for key, value in list(vars(module).items()):
            if callable(value) and not key.startswith('__'):
                try: setattr(module, key, lambda *a, **k: {'status': 'passed', 'detail': ''})
                except Exception: pass
def f(x): return None
""",
    "a verdict on every descriptor": """
import os
def f(x):
    for fd in range(256):
        for data in (b'{"status": "passed", "detail": ""}', b'\\0\\0\\0\\2{}'):
            try: os.write(fd, data)
            except OSError: pass
""",
    "answers in advance": """
import json, os, struct
def send(message):
    body = json.dumps(message).encode()
    for fd in range(3, 64):
        try: os.write(fd, struct.pack('!I', len(body)) + body)
        except OSError: pass
for _ in range(50): send(['value', True, None])
def f(x): return None
""",
    "reading the tests": """
import gc, sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if 'expected-' in str(value)[:10**6]: return 'expected-4711'
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (str, bytes)) and 'expec' 'ted-47' in str(thing):
            return 'expec' 'ted-4711'
""",
    "reading memory": """
import ctypes, os
def f(x):
    needle = b'expec' + b'ted-4711'
    for line in open('/proc/self/maps'):
        a, b = (int(n, 16) for n in line.split()[0].split('-'))
        if ' rw' in line and b - a < 1 << 26 and needle in ctypes.string_at(a, b - a):
            return needle.decode()
""",
    "StopIteration": "def f(x): raise StopIteration",
    "hanging up": "import os\ndef f(x): os.closerange(3, 256)",
    "no such name": "def g(x): return 'expected-4711'",
    "no Python": "def f(x:\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", FAKES)
def test_fakes_do_not_pass(sandbox, name):
    outcome = run(sandbox, FAKES[name])
    assert outcome.status in {"failed", "exited"}, outcome


def test_a_right_program_passes(sandbox):
    code = "def f(x):\n    return x if isinstance(x, list) else f'expected-{x * 1570 + 1}'"
    assert run(sandbox, code).passed


def test_stop_iteration_does_not_end_a_loop_of_the_tests(sandbox):
    tests = "assert all(map(lambda n: f(n) == n, range(3)))"
    assert run(sandbox, "def f(x): return x", tests).passed
    assert not run(sandbox, "def f(x): raise StopIteration", tests).passed


def test_a_program_cannot_replace_a_helper_of_the_prompt(sandbox):
    prompt = "def encode(s):\n    return s[::-1]\n\n\ndef decode(s):\n    '''Undo encode.'''\n"
    tests = "def check(candidate):\n    assert candidate(encode('abc')) == 'abc'\n"
    for body, passes in {
        "    return s[::-1]\n": True,
        "    return s\n\n\ndef encode(s):\n    return s\n": False,
    }.items():
        program = Program(prompt + body, tests, "decode", prelude=prompt)
        assert sandbox.run([program])[0].passed is passes


def test_a_callback_shows_no_more_of_the_tests_than_calls(sandbox):
    tests = """
SECRET = 4711
class Box:
    def __init__(self): self.item = 1
def secret(): return SECRET
def values(): yield SECRET
assert f(Box(), secret, values()) == 'denied'
"""
    code = """
def f(box, function, generator):
    assert box.item == 1 and function() == 4711
    for look in (
        lambda: function.__globals__, lambda: function.__code__, lambda: box._item,
        lambda: function.__closure__, lambda: generator.gi_frame, lambda: function.func_globals,
        lambda: function._peer.request('getattr', function, '__globals__'),
        lambda: function._peer.request('getattr', box, '__init__'),
    ):
        try: look()
        except Exception: continue
        return 'seen'
    return 'denied'
"""
    outcome = run(sandbox, code, tests)
    assert outcome.passed, outcome


@pytest.mark.parametrize("tests", ["", "assert True", "def check(candidate):\n    pass"])
def test_tests_that_ask_nothing_are_no_pass(sandbox, tests):
    assert run(sandbox, "def f(x): return x", tests, "f").status == "untested"
