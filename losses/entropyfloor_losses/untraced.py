"""What ``torch.compile`` calls as it is: how many chunks there are follows from the labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def untraced(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function``, which a compiled caller does not trace.

    `torch.compiler.disable` alone would load torch's compiler, seconds, where nothing is compiled.
    """

    @functools.wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            as_it_is: Callable[Arguments, Result] = torch.compiler.disable(function)
            return as_it_is(*args, **kwargs)
        return function(*args, **kwargs)

    return called
