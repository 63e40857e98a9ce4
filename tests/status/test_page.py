"""The page in Chromium: what a visitor sees, does by keyboard, and is never shown."""

import re

import numpy as np
import pytest
from status_answers import ServerThread, answer

from usp_daemon.status import Board, Change, Config, Facts, Health, Service, Tuner, status_routes
from usp_daemon.wire import TopicPartition

ONE = TopicPartition("ticks", 0)
HOSTILE = "<img src=x onerror=document.title='owned'>"
NAMES = ["alpha", "beta", "gamma", HOSTILE, "x" * 128, "\"'><script>document.title='owned'</script>"]
CONTRAST_AND_ALL = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


class Site:
    """A board with a server, whose reads and writes go to the server's thread."""

    def __init__(self, names=NAMES, max_symbols=200):
        self.board = Board(max_symbols)
        self.seq = 0
        self.facts = Facts(
            service=Service(kind="run", instance="replica-7", group="g", version="9.9.9", versions={"jax": "1"}),
            health=Health(live=True, ready=True, reasons=[]),
            config=Config(
                epoch=3, config_hash="ab" * 32, adopted_ns=1_700_000_000_000_000_000,
                changes_to_defaults=[Change(path="kafka.sasl_password", old="(hidden)", new="(hidden)",
                                            parameter_class="locked")] * 12,
                changes_to_last_epoch=[Change(path="orchestration.cusum_k", old=0.5, new=0.7,
                                              parameter_class="traced")],
            ),
            tuner=Tuner(mode="autonomous", phase="campaign", leads=True, trials=12, trials_total=50, best_ratio=0.98),
        )  # fmt: skip
        self.server = ServerThread(status_routes(self.board, lambda: self.facts))
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}/status"

        def fill():
            self.board.partition_state(ONE, "RUNNING")
            self.board.update(ONE, lag_records=12, lag_s=0.2, symbols=len(names))

        self.server.run(fill)
        for _ in range(30):
            self.tick(names)
        self.tick(names[1:2], alarm_kind=[1], alarm_statistic=[9.5], alarm_threshold=[8.0])
        self.tick(names[2:3], mode=[2], emergency_mode=[True])

    def tick(self, names, value=None, **columns):
        self.seq += 1
        n = len(names)
        values = np.sin(self.seq / 4.0) + np.arange(n) if value is None else np.full(n, value)
        bounds = {name: values + shift for name, shift in
                  (("lower_95", -0.4), ("lower_80", -0.2), ("upper_80", 0.2), ("upper_95", 0.4))}  # fmt: skip
        shown = {"predicted_next": values, "sequence": [self.seq] * n, "adaptive_threshold": [8.0] * n, **bounds}
        stamps = [1_700_000_000_000_000_000 + self.seq * 1_000_000_000] * n
        told = answer(names, stamps, values, **(shown | columns))
        self.server.run(lambda: self.board.answered(ONE, [told]))


@pytest.fixture(scope="module")
def site():
    site = Site()
    yield site
    site.server.close()


class Visit:
    """A page, with everything that it complained about and asked for."""

    def __init__(self, browser, url, *, width=1280, height=900, scheme="light", wait=True, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        if wait:
            self.page.wait_for_selector("#rows tr svg")

    def __enter__(self):
        return self.page

    def __exit__(self, *failure):
        self.context.close()


def until(page, claim, patience_s=20.0):
    """Wait until the claim, an expression, is true; the page's own policy forbids to evaluate it from inside."""
    for _ in range(int(patience_s / 0.05)):
        if page.evaluate(claim):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not true within {patience_s:g} s: {claim}")


def names_shown(page):
    return page.locator("#rows th a").all_text_contents()


def test_loads_without_complaint_and_asks_nobody_else(browser, site):
    visit = Visit(browser, site.url)
    with visit as page:
        until(page, "document.querySelector('#link-text').textContent === 'Live'")
        assert page.title() == "replica-7 – usp-daemon"
        assert page.locator("#rows tr").count() == len(NAMES)
        assert page.locator("#partitions").inner_text().split()[:2] == ["ticks/0", "running"]
        assert "orchestration.cusum_k" in page.locator("#config").inner_text()
        assert "Trial 12 of 50" in page.locator("#tuner").inner_text()
        assert "level up" in page.locator("#alarms").inner_text()
        assert page.locator("#rows tr", has_text="gamma").locator(".pill.bad:visible").inner_text() == "Emergency"
        page.wait_for_timeout(1200)
    assert visit.errors == []
    assert len(visit.requests) >= 3
    assert all(url.startswith((site.url, "data:")) for url in visit.requests), visit.requests


def test_hostile_names_are_text(browser, site):
    visit = Visit(browser, site.url)
    with visit as page:
        assert HOSTILE in names_shown(page)
        page.locator("#rows a", has_text="onerror").click()
        assert page.locator("#detail-name").inner_text() == HOSTILE
        assert page.locator("main img").count() == page.locator("main script").count() == 0
        page.goto(f"{site.url}#symbol=0%2F<img src=x onerror=document.title='owned'>%")  # not even an encoding
        page.wait_for_timeout(300)
        assert "owned" not in page.title()
        # What the policy forbids does not happen, whoever tries it.
        for forbidden in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.createElement('a').setAttribute('onclick', 'x')",
            "document.head.append(Object.assign(document.createElement('script'), {text: 'x'}))",
        ):
            said = page.evaluate(
                f"() => {{ try {{ {forbidden}; return 'done'; }} catch (error) {{ return error.name; }} }}"
            )
            assert said == "TypeError", forbidden
        assert "owned" not in page.title()


def test_updates_live_and_pauses(browser, site):
    with Visit(browser, site.url) as page:
        site.tick(["alpha"], value=1234.5)
        until(page, "[...document.querySelectorAll('#rows tr')].some(r => r.innerText.includes('1,234.5'))")
        page.get_by_role("button", name="Pause").click()
        assert page.locator("#link-text").inner_text() == "Paused"
        assert page.locator("#pause").get_attribute("aria-pressed") == "true"
        site.tick(["alpha"], value=777.25)
        page.wait_for_timeout(1500)
        assert "777.25" not in page.locator("#rows").inner_text()
        page.locator("#pause").click()
        until(page, "document.querySelector('#rows').innerText.includes('777.25')")


def test_only_changes_of_state_are_announced(browser, site):
    with Visit(browser, site.url) as page:
        page.wait_for_timeout(1500)
        assert page.locator("#announce").inner_text() == ""
        page.locator("#pause").click()
        assert page.locator("#announce").text_content() == "Paused"


def test_filter_sort_and_detail_by_keyboard_alone(browser, site):
    with Visit(browser, site.url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("/")
        page.keyboard.type("eta")
        until(page, "document.querySelectorAll('#rows tr').length === 1")
        assert names_shown(page) == ["beta"]
        page.keyboard.press("Control+a")
        page.keyboard.type("emergency")
        until(page, "document.querySelector('#rows a').textContent === 'gamma'")
        page.keyboard.press("Control+a")
        page.keyboard.press("Delete")
        until(page, f"document.querySelectorAll('#rows tr').length === {len(NAMES)}")
        page.keyboard.press("Tab")  # the choice of an order
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Symbol"
        page.keyboard.press("Enter")
        assert names_shown(page) == sorted(NAMES, reverse=True)
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        for _ in range(2):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Last alarm"
        page.keyboard.press("Enter")
        assert names_shown(page)[0] == "beta"
        for _ in range(2):
            page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert (page.evaluate("document.activeElement.textContent"), outline) == ("beta", "solid")
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail:not([hidden])")
        assert "#symbol=0%2Fbeta" in page.url
        assert page.evaluate("document.activeElement.id") == "detail-name"
        assert "statistic 9.5 over 8" in page.locator("#detail").inner_text()
        page.wait_for_timeout(1300)  # an update does not take the focus away
        assert page.evaluate("document.activeElement.id") == "detail-name"
        page.keyboard.press("Escape")
        assert page.locator("#detail").is_hidden()
        assert page.evaluate("document.activeElement.textContent") == "beta"


def test_detail_by_address_and_of_a_symbol_that_is_not_watched(browser, site):
    with Visit(browser, f"{site.url}#symbol=0%2Fgamma") as page:
        assert page.locator("#detail-name").inner_text() == "gamma"
        assert page.locator("#detail svg.big circle").count() > 20
        assert "next expected" in page.locator("#detail svg.big").get_attribute("aria-label")
        page.evaluate("location.hash = '#symbol=0%2Fnobody'")
        until(page, "document.querySelector('#detail-note').textContent.includes('not watched')")
        page.go_back()
        until(page, "document.querySelector('#detail-name').textContent === 'gamma'")


@pytest.mark.parametrize("fragment", ["", "#symbol=0%2Fbeta"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser, site, width, fragment):
    with Visit(browser, site.url + fragment, width=width, height=740) as page:
        wide, shown = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        too_far = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.unseen, svg'))"
            ".filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.tagName + e.id)"
        )
        assert (too_far, wide) == ([], shown)
        for card in ("#symbols", ".side .card"):
            for box in page.locator(f"{card} table").all():
                assert box.evaluate(
                    "t => t.getBoundingClientRect().right <= t.parentElement.getBoundingClientRect().right"
                )


def test_light_and_dark_differ_and_motion_can_be_off(browser, site):
    colours = set()
    for scheme in ("light", "dark"):
        with Visit(browser, site.url, scheme=scheme) as page:
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    moving = "getComputedStyle(document.querySelector('.live i')).animationName"
    with Visit(browser, site.url) as page:
        page.wait_for_selector(".live.ok")
        assert page.evaluate(moving) == "beat"
    with Visit(browser, site.url, reduced_motion="reduce") as page:
        page.wait_for_selector(".live.ok")
        assert page.evaluate(moving) == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "fragment"), [(1280, "#symbol=0%2Fbeta"), (360, "")])
def test_axe_finds_no_violation(browser, site, scheme, width, fragment):
    from axe_playwright_python.sync_playwright import Axe

    # The tool puts itself into the page, which its policy would not let it do.
    with Visit(browser, site.url + fragment, scheme=scheme, width=width, bypass_csp=True) as page:
        found = Axe().run(page, options=CONTRAST_AND_ALL)
        assert found.violations_count == 0, found.generate_report()
        assert len(found.response["passes"]) > 15


def test_says_that_the_daemon_is_away_and_comes_back(browser):
    site = Site()
    try:
        with Visit(browser, site.url) as page:
            site.server.stop()
            until(page, "document.querySelector('#link-text').textContent.startsWith('Disconnected')")
            assert "does not answer" in page.locator("#notices").inner_text()
            assert page.evaluate("document.body.classList.contains('stale')")
            assert page.locator("#rows tr").count() == len(NAMES)
            assert re.search(r"next try in \d+ s", page.locator("#link-text").inner_text())
            site.server.start()
            until(page, "document.querySelector('#link-text').textContent === 'Live'")
            assert page.locator("#notices").inner_text() == ""
            site.facts = Facts(
                service=site.facts.service,
                health=Health(live=True, ready=False, reasons=["partition ticks-1 is FAILED"]),
            )
            until(page, "document.querySelector('#health').textContent === 'Not ready'")
            assert "ticks-1 is FAILED" in page.locator("#notices").inner_text()
            assert page.locator("#announce").text_content() == "Not ready"
            assert page.locator("#config").is_hidden() and page.locator("#tuner").is_hidden()
    finally:
        site.server.close()


def test_many_symbols_come_in_pages(browser):
    site = Site([f"symbol-{i:03}" for i in range(60)])
    try:
        with Visit(browser, site.url) as page:
            assert page.locator("#rows tr").count() == 25
            assert page.get_by_text("Page 1 of 3").is_visible()
            page.get_by_role("button", name="Next").click()
            until(page, "document.querySelectorAll('#rows tr svg.spark').length === 25")
            assert names_shown(page)[0] == "symbol-025"
            page.get_by_role("button", name="Next").click()
            assert page.locator("#rows tr").count() == 10 and page.get_by_role("button", name="Next").is_disabled()
            asked = []
            page.on("request", lambda request: asked.append(request.url))
            page.wait_for_timeout(1500)
            assert asked and all(url.count(",") == 9 for url in asked)  # what is shown, and no more
    finally:
        site.server.close()
