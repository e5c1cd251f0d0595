"""What mkdocs is told beside mkdocs.yml: pages from outside docs/, and the public names.

README, CHANGELOG and CONTRIBUTING become pages. In docs/api/, ``::: entropyfloor.NAME`` stands for
the place where the name is defined, since the package imports it lazily. The build fails if a
public name is in none of those pages, or has no docstring.
"""

import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

import entropyfloor

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md"} | {n: n for n in ("CHANGELOG.md", "CONTRIBUTING.md")}

_LOSSES = griffe.load("entropyfloor_losses", search_paths=[str(ROOT / "losses")])
_PACKAGE = griffe.load("entropyfloor", search_paths=[str(ROOT / "src"), str(ROOT / "losses")])
# Public name, as a user imports it -> where it is defined.
PUBLIC = {f"entropyfloor.{name}": f"{m}.{name}" for name, m in entropyfloor._PUBLIC.items()}
PUBLIC |= {f"entropyfloor_losses.{name}": _LOSSES[name].path for name in _LOSSES.exports or ()}


def on_config(config: MkDocsConfig) -> None:
    """Put docs/integrations/ into the navigation: a page per framework, by file name."""
    pages = sorted(Path(config.docs_dir).glob("integrations/*.md"))
    pages.sort(key=lambda page: page.stem != "index")
    if config.nav is not None and pages:
        listed = [f"integrations/{page.name}" for page in pages]
        config.nav.insert(3, {"Integrations": listed})


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside docs/, their links turned round."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Say where the names of an API page are defined."""
    if page.file.src_uri.startswith("api/"):
        markdown = re.sub(r"(?<=^::: )\S+", lambda m: PUBLIC[m[0]], markdown, flags=re.MULTILINE)
    return markdown


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a notebook's links to pages, which nobody else follows."""

    def address(match: re.Match[str]) -> str:
        target = files.get_file_from_path(match[1])
        if target is None:
            raise PluginError(f"{page.file.src_uri} links to {match[1]}, which is no page")
        return f'href="{target.url_relative_to(page.file)}'

    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'href="([\w/]+\.md)', address, html)
    return html


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> None:
    """Fail if a public name is undocumented."""
    shown = set()
    for file in files.documentation_pages():
        if file.src_uri.startswith("api/"):
            shown |= set(re.findall(r"^::: (\S+)", file.content_string, re.MULTILINE))
    silent = [name for name, place in PUBLIC.items() if not _object(place).has_docstring]
    for problem, names in (
        ("in no page of docs/api/", PUBLIC.keys() - shown),
        ("no public name any more, and in docs/api/", shown - PUBLIC.keys()),
        ("without a docstring", silent),
    ):
        if names:
            raise PluginError(f"{problem}: {', '.join(sorted(names))}")


def _object(path: str) -> griffe.Object | griffe.Alias:
    package, _, inside = path.partition(".")
    return (_LOSSES if package == "entropyfloor_losses" else _PACKAGE)[inside]
