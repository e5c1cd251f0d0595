"""Canaries look at the source text of trl and transformers: what moved there needs to be looked at.

They warn. Whether something broke is for the other tests, which run what is installed.
"""

import ast
import functools
import inspect
import textwrap
import warnings

from entropyfloor.sft.tested_versions import tested, untested


def canary(test):
    """A test whose failed assertion is a warning."""

    @functools.wraps(test)
    def warning(*args, **kwargs):
        try:
            test(*args, **kwargs)
        except (AssertionError, AttributeError, ValueError) as error:
            versions = untested() or "a tested version"
            message = f"{test.__name__}: {error!r:.300}. {versions}; tested: {tested()}"
            warnings.warn(message, stacklevel=1)

    return warning


def expressions(function):
    """Every expression in a function's source, as text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr)]
