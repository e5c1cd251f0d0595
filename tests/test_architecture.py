"""Imports go down the map in CONTRIBUTING.md, in no circle, and results know no renderer.

Imports inside functions count like those at a file's top. What is still in the way is listed below,
and a line that is no longer needed must go: the lists only shrink.
"""

import ast
import re
import sys
from pathlib import Path

import entropyfloor

ROOT = Path(__file__).parent.parent
SOURCES = {
    "entropyfloor": ROOT / "src/entropyfloor",
    "entropyfloor_losses": ROOT / "losses/entropyfloor_losses",
}
MOST_PARAMETERS = 8
MOST_LINES = 400

# Modules that turn results into something to look at; they stand beside what they render.
RENDERERS = re.compile(
    r"(.*_)?(table|columns|figures?|page|plot|markdown|terminal|frontier_report|findings|answer)$"
)

# Still wrong: (module, imported module), without "entropyfloor.".
UPWARD: set[tuple[str, str]] = set()
CIRCLES: set[str] = set()  # folders
# (module, function) with more parameters: the public functions of the losses, keyword by keyword.
MANY_PARAMETERS: set[tuple[str, str]] = {
    ("entropyfloor_losses.head", "linear_loss"),
    ("entropyfloor_losses.head", "linear_token_statistics"),
    ("entropyfloor_losses.plain", "token_statistics"),
    # A kernel takes pointers, sizes and what it is compiled for, one by one.
    ("entropyfloor_losses.triton_kernels", "fold_kernel"),
    ("entropyfloor_losses.triton_kernels", "gradient_kernel"),
}
RESULTS_THAT_RENDER: set[tuple[str, str]] = {
    ("coupling.couple", "coupling.page"),
    ("echelon.run", "echelon.page"),
    ("echelon.run", "screening.table"),
    ("rl.collapse_monitor", "rl.monitor_plot"),
    ("screening.screen", "screening.page"),
    ("sft.floor.callback", "sft.floor.plot"),
}


def modules():
    """Every module's name and file; a package's name is its ``__init__``."""
    for package, folder in SOURCES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


FILES = dict(modules())


def imports_of(module, file):
    """The modules of ours that a file imports, wherever in the file."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            targets = [
                # Public names are imported lazily from where they are defined.
                entropyfloor._PUBLIC.get(alias.name, f"{source}.{alias.name}")
                if source == "entropyfloor"
                else f"{source}.{alias.name}"
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            while target and target not in FILES:
                target = target.rpartition(".")[0]
            if target and target != module:
                yield target


IMPORTS = {module: set(imports_of(module, file)) for module, file in FILES.items()}


def layers():
    """Of the map in CONTRIBUTING.md: the folders in order, and those on the ground."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = text.partition("```text\n")[2].partition("```")[0]
    above, _, ground = block.partition("on the ground")
    names = [re.findall(r"^    (\S+?)/?(?:\.py)?(?=  )", part, re.M) for part in (above, ground)]
    return names[0], names[1]


def folder_of(module):
    """The folder of the map that a module lies in; None for the package itself."""
    package, *inside = module.split(".")
    if package == "entropyfloor_losses":
        return "losses"
    return inside[0] if inside else None


def assert_shrinking(pairs, known):
    """No pair that is not known, and none known that is there no more."""
    short = {tuple(m.removeprefix("entropyfloor.") for m in pair) for pair in pairs}
    assert not short - known, "new"
    assert not known - short, "mended: take it off the list"


def test_the_map_holds_every_folder_and_no_other():
    above, ground = layers()
    there = {folder_of(module) for module in FILES} - {None}
    assert sorted([*above, *ground]) == sorted(there)


def test_arrows_go_down():
    above, ground = layers()

    def allowed(source, target):
        if None in (source, target) or source == target:
            return True
        if target in ground:
            # The ground knows no feature, and only files below itself.
            return source in above or target == "io"
        return source in above and above.index(source) < above.index(target)

    upward = {
        (module, target)
        for module, targets in IMPORTS.items()
        for target in targets
        if not allowed(folder_of(module), folder_of(target))
    }
    assert_shrinking(upward, UPWARD)


def test_nothing_imports_the_integrations():
    importers = {
        folder_of(module)
        for module, targets in IMPORTS.items()
        if any(folder_of(target) == "integrations" for target in targets)
    }
    assert importers == {"integrations"}


def circles():
    """Sets of modules that reach each other (Tarjan's strongly connected components)."""
    index, low, stack, result = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in IMPORTS[module]:
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            component = set()
            while module not in component:
                component.add(stack.pop())
            if len(component) > 1:
                result.append(frozenset(component))

    for module in IMPORTS:
        if module not in index:
            visit(module)
    return set(result)


def test_no_circles():
    # A circle counts for the topmost of its folders: there the arrow down can be cut.
    order = [folder for part in layers() for folder in part]
    through = {min(map(folder_of, circle), key=order.index): circle for circle in circles()}
    assert set(through) == CIRCLES, through


def test_results_import_no_renderer():
    """What may: other renderers, and the command, which shows what was measured."""
    rendering = {
        (module, target)
        for module, targets in IMPORTS.items()
        for target in targets
        if not RENDERERS.match(module.rpartition(".")[2])
        and folder_of(module) not in ("cli", "render")
        and (RENDERERS.match(target.rpartition(".")[2]) or folder_of(target) == "render")
    }
    assert_shrinking(rendering, RESULTS_THAT_RENDER)


def test_files_are_short():
    long = {
        module for module, file in FILES.items() if len(file.read_text().splitlines()) > MOST_LINES
    }
    assert long == set()


def test_functions_take_few_parameters():
    """Options that belong together are a dataclass: see rollouts/options.py."""
    many = set()
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                names = [argument.arg for argument in every if argument.arg not in ("self", "cls")]
                if len(names) > MOST_PARAMETERS:
                    many.add((module, node.name))
    assert_shrinking(many, MANY_PARAMETERS)


def test_the_losses_need_torch_alone():
    for module, file in FILES.items():
        if folder_of(module) != "losses":
            continue
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
        foreign = names - set(sys.stdlib_module_names) - {"torch"}
        # torch's own: the one for type checkers, the other beside its CUDA build.
        own = {"typing_extensions"} | ({"triton"} if module.endswith("triton_kernels") else set())
        assert foreign <= own, module
