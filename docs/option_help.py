"""An option, ``flag(default, help)``, in the API's reference: its help is said of its field."""

import ast
from typing import Any

import griffe


class OptionHelp(griffe.Extension):
    """Reads the fields that are made by ``flag``."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Take the default as value and the help as docstring."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and str(call.function) == "flag":
            default, words = map(str, call.arguments[:2])
            if words.startswith(("'", '"')):  # else text put together, which only Python reads
                attr.docstring = griffe.Docstring(ast.literal_eval(words), parent=attr)
            attr.value = default
