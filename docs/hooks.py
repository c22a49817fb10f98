"""What lies outside docs becomes part of the site: README.md is its start, CHANGES.md a page, their links come along."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGES.md": "changes.md"}
FILES = ("CITATION.cff", "NOTICE")


def on_files(files, config):
    """Add pages and files of the repository's root."""
    for source, target in PAGES.items():
        text = re.sub(r"\]\((?:docs/)?", "](", (ROOT / source).read_text())
        files.append(File.generated(config, target, content=_renamed(text)))
    for name in FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, **_):
    """Links from docs to the repository's root stay on the site."""
    return _renamed(markdown.replace("](../", "]("))


def _renamed(text: str) -> str:
    for source, target in PAGES.items():
        text = text.replace(f"]({source}", f"]({target}")
    return text
