"""Text of users and models on its way into a page: control characters are made visible.

Escaping of markup is left to markupsafe and Jinja2; this is about characters that HTML does not
allow (C0, C1, lone surrogates) or that would turn around the text after them (bidi overrides).
"""

_REPLACED = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}
_REPLACED |= dict.fromkeys(
    [*range(0x7F, 0xA0), *range(0xD800, 0xE000), *range(0x202A, 0x202F), *range(0x2066, 0x206A)],
    "\ufffd",
)


def visible(text: object) -> str:
    """``str(text)`` with a sign in place of every character that a page cannot show."""
    return str(text).translate(_REPLACED)
