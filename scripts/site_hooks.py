"""Hooks of mkdocs: pages that stand outside of docs/ join the site, and links in all pages are made to fit it.

In the repository a link is relative to the file it stands in, wherever it leads. On the site, what is a page is linked
to as one, and what is none (source, tests, configuration) is named by its path.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Files elsewhere in the repository, and the pages that they become.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\[]+)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside."""
    for source, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to pages, and name what is none."""
    uri = page.file.src_uri
    source = next((ROOT / name for name, mapped in OUTSIDE.items() if mapped == uri), DOCS / uri)

    def link(match: re.Match[str]) -> str:
        text, anchor = match["text"], match["anchor"] or ""
        target = (source.parent / match["target"]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            return match[0]  # mkdocs says what is wrong with it
        if target.is_dir():
            target /= "README.md"
        name = target.relative_to(ROOT).as_posix()
        wanted = OUTSIDE.get(name, name.removeprefix("docs/") if name.startswith("docs/") else None)
        if wanted is not None and files.get_file_from_path(wanted) is not None:
            return f"[{text}]({os.path.relpath(wanted, Path(uri).parent).replace(os.sep, '/')}{anchor})"
        path = name.removesuffix("/README.md")
        return text if path in text or text.strip("`") in path else f"{text} (`{path}`)"

    return _LINK.sub(link, markdown)
