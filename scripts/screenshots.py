"""Pictures of the status page for docs/images: the demonstration's real series, in a real browser.

``python scripts/screenshots.py [DIRECTORY]`` starts ``usp-daemon demo --serve``, waits until some alarms were raised,
and takes the page on a desktop (light, dark, with one symbol's detail) and on a phone. It needs Chromium
(``apt-get install chromium``) and the packages of the extra "test".
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = os.environ.get("USP_CHROMIUM", "/usr/bin/chromium")
MAX_BYTES = 200_000
DESKTOP, PHONE = {"width": 1240, "height": 790}, {"width": 360, "height": 740}
NUM_TICKS = 7_500
PATIENCE_S = 400.0


def wait_for_ticks(url: str, num_ticks: int) -> None:
    """Until so many ticks are answered."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{url}.json?history=none", timeout=10) as answer:
            if json.load(answer)["totals"]["predictions"] >= num_ticks:
                return
        time.sleep(1.0)
    raise TimeoutError(f"{url}: fewer than {num_ticks} ticks in {PATIENCE_S:g} s")


def take(browser: Browser, url: str, path: pathlib.Path, *, scheme: str, size: dict[str, int], scale: float) -> None:
    """One picture of what a visitor sees first."""
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=scale)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#rows tr svg")
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    context.close()
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES}")
    print(path, path.stat().st_size)


def main() -> None:
    """Starts the demonstration, takes the pictures, ends it."""
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "usp_daemon.cli", "demo", "--serve", "--port", "0", "--out", directory]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+", process.stderr.readline())
            if found is None:
                raise SystemExit("the demonstration did not say where its page is")
            url = found[0]
            wait_for_ticks(url, NUM_TICKS)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                for scheme in ("light", "dark"):
                    take(browser, url, target / f"status-{scheme}.png", scheme=scheme, size=DESKTOP, scale=1.0)
                detail = f"{url}#symbol=0%2Fbtcusd_1h"
                take(browser, detail, target / "status-detail.png", scheme="light", size=DESKTOP, scale=1.0)
                take(browser, url, target / "status-phone.png", scheme="light", size=PHONE, scale=1.5)
                browser.close()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


if __name__ == "__main__":
    main()
