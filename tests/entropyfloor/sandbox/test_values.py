"""What crosses between tests and program: values by copy, objects by reference."""

import pytest

from entropyfloor.sandbox import LocalSandbox, Program
from entropyfloor.sandbox.inside.wire import decode, encode

CASES = {
    "plain": ("def f(x): return x", "for x in (None, True, 1, -2.5, 'é\\ud800', b'\\0', 1j): "
              "y = f(x); assert y == x and type(y) is type(x)"),
    "no numbers": ("def f(x): return x", "assert f(float('nan')) != f(1) and f(float('inf')) > 1"),
    "long integers": ("def f(x): return x ** 3", "assert f(-10 ** 5000) == -10 ** 15000"),
    "nested": ("def f(x): return x", "x = [(1, {2: {3}}), {(4,): frozenset({5})}, [], ()]\n"
               "assert f(x) == x and type(f(x)[0]) is tuple"),
    "library types": (
        "def f(x): return x",
        "import collections, datetime, decimal, fractions\n"
        "for x in (decimal.Decimal('1.10'), fractions.Fraction(1, 3), datetime.date(2020, 2, 29),"
        " datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.timedelta(days=-1, microseconds=1),"
        " datetime.time(1, 2), collections.deque([1]), range(1, 9, 2), slice(1, None), ...):\n"
        "    assert f(x) == x and type(f(x)) is type(x), x",
    ),
    "dict subclasses": (
        "from collections import Counter, defaultdict, OrderedDict\n"
        "def f(x): return [Counter(x), defaultdict(int, a=1), OrderedDict(b=2)]",
        "assert f('aab') == [{'a': 2, 'b': 1}, {'a': 1}, {'b': 2}]",
    ),
    "changed in place": (
        "def f(l, d, s):\n    l.sort()\n    l[0].append(9)\n    d.pop('x')\n    d['y'] = 1\n"
        "    s.clear()",
        "inner = [1]\nl, d, s = [[3], inner], {'x': 0}, {1}\nf(l, d, s)\n"
        "assert l == [[1, 9], [3]] and d == {'y': 1} and s == set()",
    ),
    "generators": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\n"
                   "g = f(2)\nassert next(g) == 0 and sum(g) == 1"),
    "callbacks": (
        "def f(g, xs): return sorted(xs, key=g)",
        "assert f(lambda x: -x, [1, 3, 2]) == [3, 2, 1] and f(abs, [-2, 1]) == [1, -2]\n"
        "import math\nassert f(math.sqrt, [4, 1]) == [1, 4]",
    ),
    "callbacks that raise": (
        "def f(g):\n    try: g()\n    except ZeroDivisionError: return 'caught'",
        "assert f(lambda: 1 / 0) == 'caught'",
    ),
    "a class": (
        "class Stack:\n"
        "    def __init__(self, items=()): self.items = list(items)\n"
        "    def push(self, x): self.items.append(x); return self\n"
        "    def __len__(self): return len(self.items)\n"
        "    def __getitem__(self, i): return self.items[i]\n"
        "    def __contains__(self, x): return x in self.items\n"
        "    def __iter__(self): return iter(self.items)\n"
        "    def __add__(self, other): return Stack([*self.items, *other.items])\n"
        "    def __eq__(self, other): return self.items == other.items\n"
        "    def __repr__(self): return f'Stack({self.items})'\n"
        "    def __enter__(self): return self\n"
        "    def __exit__(self, *e): self.items.clear()\n",
        "s = Stack().push(1).push(2)\n"
        "assert len(s) == 2 and s[1] == 2 and 1 in s and list(s) == [1, 2] and bool(s)\n"
        "assert s + Stack([3]) == Stack([1, 2, 3]) and s != Stack() and s != [1, 2]\n"
        "assert isinstance(s, Stack) and not isinstance([], Stack)\n"
        "assert repr(s) == str(s) == 'Stack([1, 2])'\ns.items = [7]\nassert s.items == [7]\n"
        "with s as t: assert t is s\nassert len(s) == 0\n"
        "try: s > 3\nexcept TypeError: pass\nelse: raise AssertionError",
    ),
    "objects of the tests": (
        "def f(node):\n    total = 0\n    while node is not None:\n        total += node.value\n"
        "        node.seen = True\n        node = node.next\n    return total",
        "class Node:\n    def __init__(self, value, next=None):\n"
        "        self.value, self.next = value, next\n"
        "last = Node(2)\nassert f(Node(1, last)) == 3 and last.seen",
    ),
    "exceptions": (
        "class Mine(ValueError): pass\n"
        "def f(x):\n    if x: raise Mine('no', x)\n    raise KeyError(x)",
        "try: f(1)\nexcept Mine as e: assert e.args == ('no', 1) and isinstance(e, ValueError)\n"
        "else: raise AssertionError\n"
        "try: f(0)\nexcept KeyError as e: assert str(e) == '0'\nelse: raise AssertionError",
    ),
    "plain names": ("LIMIT = 7\ndef helper(): return LIMIT", "assert LIMIT == 7 == helper()"),
    "the module": ("def f(): return 1", "from solution import f as g\nassert g() == 1"),
    "library names stay the library's": (
        "class math:\n    @staticmethod\n    def isclose(a, b): return True\n"
        "def f(x): return 0\ndef len(x): return 3",
        "try: assert math.isclose(f(1), 1)\nexcept AssertionError: pass\n"
        "else: raise ValueError\nassert len([]) == 0",
    ),
    "pytest's form": ("def f(x): return x", "def test_a():\n    assert f(1) == 1\n"),
    "unittest's form": ("def f(x): return x", "import unittest\nclass T(unittest.TestCase):\n"
                        "    def test_a(self): self.assertEqual(f([1]), [1])\n"),
    "dataclasses and typing": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport typing\n"
        "@dataclass\nclass P:\n    x: int\ndef f(x): return typing.get_type_hints(P), P(x).x",
        "assert f(2)[1] == 2",
    ),
    "main is not run": ("def f(): return 1\nif __name__ == '__main__': raise SystemExit",
                        "assert f() == 1"),
    "numpy": ("import numpy as np\ndef f(n): return np.arange(n) * 2, np.float64(0.5)",
              "import numpy as np\na, b = f(3)\nassert (a == np.arange(3) * 2).all() and b == .5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox():
    with LocalSandbox(workers=2) as made:
        yield made


def test_right_programs_pass(sandbox):
    outcomes = sandbox.run([Program(code, tests) for code, tests in CASES.values()])
    assert {n: o for n, o in zip(CASES, outcomes, strict=True) if not o.passed} == {}


WRONG = {
    "pytest's form": ("def f(x): return x", "def test_a():\n    assert f(1) == 2\n"),
    "unittest's form": CASES["unittest's form"][1].replace("[1])\n", "[2])\n"),
    "a value of another type": ("def f(): return '1'", "assert f() == 1"),
    "changed a copy": ("def f(x): x = sorted(x)", "x = [2, 1]\nf(x)\nassert x == [1, 2]"),
    "no end of nesting": (
        "def f():\n    x = []\n    x.append(x)\n    return x",
        "assert f() == []",
    ),
    "too large to hand over": ("def f(): return 'x' * (70 << 20)", "assert f() == 1"),
    "no name": ("", "assert f() == 1"),
}


def test_wrong_programs_fail(sandbox):
    cases = {n: c if isinstance(c, tuple) else (CASES[n][0], c) for n, c in WRONG.items()}
    outcomes = sandbox.run([Program(*case) for case in cases.values()])
    assert {o.status for o in outcomes} == {"failed"}, outcomes


def test_the_start_of_the_output_is_kept(sandbox):
    program = Program("print('héllo')\ndef f(x): return print(x)", "assert f('a' * 9000) is None")
    (outcome,) = sandbox.run([program])
    assert outcome.passed
    assert outcome.output.startswith("héllo\naaa") and 8000 < len(outcome.output) <= 8192


def test_the_failing_line_is_named(sandbox):
    (outcome,) = sandbox.run([Program("def f(x): return x", "x = 1\nassert f(x) == 3")])
    assert outcome.detail == "AssertionError (tests, line 2: assert f(x) == 3)"


def refuse(form):
    raise ValueError(form)


@pytest.mark.parametrize(
    "form",
    [["ndarray", "|O", [1], "00" * 8], ["builtin", "exec"], ["builtin", "__import__"], ["no"]],
)
def test_forms_that_would_do_more_than_carry_data(form):
    with pytest.raises(ValueError):
        decode(form, refuse)


def test_a_subclass_travels_as_its_base():
    class Loud(list):
        def __iter__(self):
            raise AssertionError

        def __eq__(self, other):
            return True

        __hash__ = None

    assert type(decode(encode(Loud([1, 2]), refuse), refuse)) is list
