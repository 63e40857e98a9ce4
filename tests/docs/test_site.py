"""The site builds without a warning, every link and image leads somewhere, and it asks nobody else for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
# What a browser fetches by itself; a plain link to another site is fetched by whoever follows it.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}
LINKS_THAT_ARE_NOT_FETCHED = {"canonical", "next", "prev", "alternate"}


class Links(HTMLParser):
    """Anchors, links and what is fetched, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        for element, name in FETCHED:
            rel = set(given.get("rel", "").split())
            if tag == element and name in given and not rel & LINKS_THAT_ARE_NOT_FETCHED:
                self.fetched.append(given[name])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What mkdocs said, and the site."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr, directory


@pytest.fixture(scope="module")
def parsed(built):
    _, directory = built
    return {path: Links(path.read_text("utf-8")) for path in directory.rglob("*.html") if path.name != "404.html"}


def test_it_builds_without_a_warning(built):
    said, _ = built
    assert "WARNING" not in said
    assert "unrecognized" not in said


def test_every_page_is_in_the_navigation(built, parsed):
    said, _ = built
    assert "not included in the" not in said
    assert len(parsed) >= len(list((ROOT / "docs").rglob("*.md"))) >= 50


def test_links_and_anchors_lead_somewhere(built, parsed):
    _, directory = built
    broken = []
    for path, found in parsed.items():
        for link in found.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = parsed[target].anchors if target in parsed else set()
            if not target.is_file() or (url.fragment and unquote(url.fragment) not in anchors):
                broken.append((str(path.relative_to(directory)), link))
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(built, parsed):
    _, directory = built
    for path, found in parsed.items():
        for address in found.fetched:
            url = urlsplit(address)
            assert not url.scheme and not url.netloc, (path, address)
            assert (path.parent / unquote(url.path)).resolve().is_file(), (path, address)
    for path in directory.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", path.read_text("utf-8")), path


def test_search_finds_a_setting_and_a_symptom(built):
    _, directory = built
    index = (directory / "search" / "search_index.json").read_text("utf-8")
    for words in ("recovery.on_state_missing", "handover_timed_out", "usp_fenced_total", "snapshot verify"):
        assert words in index


def slug(heading: str) -> str:
    """The anchor of a heading where Markdown is shown beside the code."""
    text = re.sub(r"[`*_]|\]\([^)]*\)|\[", "", heading) if "_" not in heading else re.sub(r"[`*]", "", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", [*OUTSIDE, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_of_a_page_in_the_repository_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for image in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
        assert (page.parent / image).is_file(), image
    for target, anchor in re.findall(r"(?<!!)\[[^\]\[]*\]\(([^)\s#:]*)(?:#([^)\s]+))?\)", text):
        path = page if not target else page.parent / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{target}#{anchor}"
