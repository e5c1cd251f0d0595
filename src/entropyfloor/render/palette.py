"""The colours of figures and pages, each with its value on a light and on a dark ground.

Figures are drawn in the light values, which are unique: inside a page each becomes the CSS variable
of its name. ``s0`` to ``s7`` are series: they stay apart in the common forms of
colour blindness (after Okabe and Ito), and markers help them.
"""

PALETTE = {
    "page": ("#ffffff", "#14171b"),
    "panel": ("#f6f7f9", "#1d2126"),
    "ink": ("#1a1d21", "#e7eaee"),
    "soft": ("#565e68", "#a6afba"),
    "rule": ("#d5dae0", "#3a424c"),
    "link": ("#0b5cad", "#85bcf5"),
    "good": ("#00684a", "#57cfa6"),
    "warn": ("#8a5200", "#f0b357"),
    "bad": ("#b3261e", "#ff8f86"),
    "open": ("#1259a1", "#86bdf6"),
    "wrong": ("#8b929a", "#7d8690"),
    "right": ("#2a9d78", "#35a581"),
    "fill": ("#3d7fb8", "#5f9fd6"),
    "s0": ("#0072b2", "#56b4e9"),
    "s1": ("#c14d00", "#ff8c47"),
    "s2": ("#00805c", "#3ccf9f"),
    "s3": ("#a8478a", "#e69ac8"),
    "s4": ("#946200", "#e6b23c"),
    "s5": ("#4f5660", "#c2c9d1"),
    "s6": ("#6a3fb5", "#b79bf5"),
    "s7": ("#7d2a1e", "#e2a296"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}


def css_variables() -> str:
    """The palette as CSS: ``--ink`` and the others, light or as the reader's system prefers."""
    light, dark = (
        " ".join(f"--{name}: {pair[side]};" for name, pair in PALETTE.items()) for side in (0, 1)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )
