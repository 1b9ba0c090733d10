"""Hooks of MkDocs: pages from outside of docs/, generated pages, and links.

A link is written as it holds in the repository. On the site it leads to the page that was made of
its target, or to a copy of the file under source/.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from lora_zoo import docs_pages

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()\s*([^)\s#]+)((?:#[^)\s]*)?)(?=\))")


def on_config(config: Any) -> None:
    """Fill the sections of the navigation that are generated."""
    made = docs_pages.navigation()
    for section in config.nav:
        (title,) = section
        if title in made:
            section[title] = made[title]


def on_files(files: Any, config: Any) -> None:
    for origin, target in FROM_ROOT.items():
        files.append(File.generated(config, target, content=(ROOT / origin).read_text()))
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.suffix in (".md", ".svg"):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for uri, text in docs_pages.pages().items():
        files.append(File.generated(config, uri, content=text))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = page.file.src_uri
    origin = next((path for path, uri in FROM_ROOT.items() if uri == here), "")
    folder = posixpath.dirname(origin or (here if here.startswith("experiments/") else f"docs/{here}"))

    def resolved(link: re.Match[str]) -> str:
        target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link.group()
        path = posixpath.normpath(posixpath.join(folder, target))
        return posixpath.relpath(_uri(path, files, config), posixpath.dirname(here)) + anchor

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(resolved, text) for text in parts[::2]]
    return docs_pages.linked("".join(parts)) if here == "variants.md" else "".join(parts)


def _uri(path: str, files: Any, config: Any) -> str:
    """The file of the site that stands for a path of the repository."""
    if path in FROM_ROOT:
        return FROM_ROOT[path]
    if (page := docs_pages.page_of(path)) and files.get_file_from_path(page):
        return page
    uri = path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        uri = f"{path}/README.md"
    if not files.get_file_from_path(uri) and (ROOT / path).is_file():
        uri = f"source/{path}" + (".txt" if path.endswith(".md") else "")  # a copy, not a page
        if not files.get_file_from_path(uri):
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return uri
