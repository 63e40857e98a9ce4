"""A clock, and the page in a real browser."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from status_answers import Clock

CHROMIUM = os.environ.get("USP_CHROMIUM") or shutil.which("chromium") or ""
REQUIRED = os.environ.get("USP_REQUIRE_BROWSER") == "1"


@pytest.fixture
def clock():
    return Clock()


# Not for the session: while it is open an event loop runs on this thread, and tests of coroutines need their own.
@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; skipped where there is none, unless USP_REQUIRE_BROWSER=1."""
    if not CHROMIUM:
        if REQUIRED:
            pytest.fail("USP_REQUIRE_BROWSER=1, and there is no chromium (apt-get install chromium)")
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
