"""The report in a real browser: Chromium without a window, driven over WebDriver's own protocol."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genflow.evaluate.report import write_comparison_report, write_report
from genflow.evaluate.table import CLASS_COLUMNS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver is installed")

PHONE, MARGIN = 390, 16
EVIL = "<script>alert(1)</script>"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
]


class Browser:
    """One window of Chromium; https://www.w3.org/TR/webdriver2/ and, for its log, Chromium's own commands."""

    def __init__(self, port: int, profile: Path) -> None:
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._address = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._address += "/" + found["sessionId"]

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"content-type": "application/json"}, method=method
        )
        try:
            with self._direct.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def run(self, script: str) -> Any:
        """What the body of a function returns in the page."""
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def command(self, name: str, **parameters: Any) -> Any:
        """One of the developer tools' commands."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, path: Path, width: int = 1200, dark: bool = False) -> None:
        """Show the file; the log before is dropped."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width == PHONE
        )
        wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.command("Emulation.setEmulatedMedia", features=features)
        self.log()
        self._send("POST", "/url", {"url": path.as_uri()})

    def log(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def click(self, selector: str) -> None:
        """As a person does: what hides the element, or no element, is an error."""
        (key,) = (found := self._send("POST", "/element", {"using": "css selector", "value": selector})).keys()
        self._send("POST", f"/element/{found[key]}/click", {})

    def close(self) -> None:
        self._send("DELETE", "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(
            int(found[1]) for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        window = Browser(port, tmp_path_factory.mktemp("profile"))
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait(30)
        driver.stdout.close()


@pytest.fixture(scope="module")
def report(make_evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, with names as bad as they can be and a class's name longer than a phone is wide."""
    evaluation = make_evaluation(name=EVIL, class_names=(EVIL, "unbreakable" * 12))
    evaluation.result["per_class"]["fd"] = [2.5, None]
    evaluation.result["protocol"]["nested"]["sha256"] = "0123456789abcdef" * 4
    evaluation.result["protocol"]["warnings"].append("/a/path/without/any/space" * 6)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, evaluation)
    return path


def test_it_renders_without_a_word_on_the_console(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.log() == []
    assert browser.run("return document.title") == f"Evaluation of {EVIL}"
    assert browser.run("return document.compatMode") == "CSS1Compat"
    assert browser.run("return [...document.querySelectorAll('script')].length") == 1


def test_the_console_is_heard_and_the_policy_holds(browser: Browser, report: Path) -> None:
    """The test above can fail: a script or a picture smuggled into the page is refused, and the refusal is logged."""
    bad = report.with_name("bad.html")
    smuggled = '<img src="http://127.0.0.1:9/x.png" alt=""><script>document.title = "taken"</script></main>'
    bad.write_text(report.read_text("utf-8").replace("</main>", smuggled), "utf-8")
    browser.open(bad)
    assert browser.run("return document.title") != "taken"
    log = " ".join(browser.log())
    assert "script-src" in log
    assert "img-src" in log


def test_all_pictures_show_and_none_is_fetched(browser: Browser, report: Path) -> None:
    browser.open(report)
    widths = browser.run(
        "return Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth)))"
    )
    assert len(widths) > 80
    assert min(widths) == max(widths) == 24
    seen = browser.run("return [...document.images].filter(image => image.getBoundingClientRect().width < 24).length")
    assert seen == 0
    fetched = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5))")
    assert set(fetched) <= {"data:"}


def test_drawings_show(browser: Browser, report: Path) -> None:
    browser.open(report)
    boxes = browser.run(
        "return [...document.querySelectorAll('svg')].map(svg => { const box = svg.getBoundingClientRect();"
        " return [box.width, box.height, svg.querySelectorAll('image').length, svg.querySelectorAll('text').length] })"
    )
    assert len(boxes) == 3
    assert all(width > 300 and height > 200 and texts > 10 for width, height, _, texts in boxes)
    assert [bitmaps for _, _, bitmaps, _ in boxes] == [1, 1, 0]
    unresolved = browser.run(
        "return [...document.querySelectorAll('use')].filter("
        "use => !document.getElementById(use.getAttribute('href').slice(1))).length"
    )
    assert unresolved == 0


COLUMN = "return [...document.querySelectorAll('.classes tbody tr')].map(row => row.cells[%d].textContent)"


def test_a_click_on_a_heading_sorts(browser: Browser, report: Path) -> None:
    browser.open(report)
    names = browser.run(COLUMN % 0)
    assert names[0] == EVIL
    browser.click(".classes th:first-child button")
    assert browser.run(COLUMN % 0) == [EVIL, names[1]]
    browser.click(".classes th:first-child button")
    assert browser.run(COLUMN % 0) == [names[1], EVIL]
    state = "return [...document.querySelectorAll('.classes thead th')].map(th => th.getAttribute('aria-sort'))"
    assert browser.run(state)[:2] == ["descending", None]
    for order in ("ascending", "descending"):  # an unknown value stays last both ways
        browser.click(".classes th:nth-child(4) button")
        assert browser.run(state)[3] == order
        assert browser.run(state)[0] is None
        assert browser.run(COLUMN % 3) == ["2.5000", "-"]


def test_numbers_sort_as_numbers(browser: Browser, make_evaluation, tmp_path: Path) -> None:
    evaluation = replace(make_evaluation(), neighbours=None, extrapolation=None)
    values = [10.0, 9.0, 100.0, None, 2000.0, 0.5]
    columns = {"classes": [f"class {i}" for i in (10, 9, 100, 3, 2000, 0)], "fd": values, "count": [5, 4, 3, 2, 1, 10]}
    evaluation.result["per_class"] = {**{key: [1] * 6 for key in CLASS_COLUMNS}, **columns}
    write_report(tmp_path / "report.html", evaluation)
    browser.open(tmp_path / "report.html")
    browser.click(".classes th:nth-child(4) button")
    assert browser.run(COLUMN % 3) == ["0.5000", "9.0000", "10.0000", "100.0000", "2000.0000", "-"]
    browser.click(".classes th:nth-child(2) button")
    assert browser.run(COLUMN % 1) == ["1", "2", "3", "4", "5", "10"]
    browser.click(".classes th:nth-child(1) button")
    assert browser.run(COLUMN % 0) == [f"class {i}" for i in (0, 3, 9, 10, 100, 2000)]


def test_without_script_the_table_is_a_table(browser: Browser, report: Path) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report)
        body = browser.command(
            "Runtime.evaluate", expression="document.querySelector('.classes').innerText", returnByValue=True
        )["result"]["value"]
        buttons = browser.command("Runtime.evaluate", expression="document.querySelectorAll('button').length")
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
    assert buttons["result"]["value"] == 0
    assert EVIL in body
    assert "precision" in body


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scroll(browser: Browser, report: Path, dark: bool) -> None:
    browser.open(report, width=PHONE, dark=dark)
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.run("return window.innerWidth") == PHONE
    assert browser.run("return document.documentElement.scrollWidth") == PHONE
    wide = browser.run(
        "return [...document.querySelectorAll('body > * *:not(.scrolled *):not(.unseen)')].filter(part => "
        f"part.getBoundingClientRect().right > {PHONE - MARGIN} + 0.5).map(part => part.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_a_comparison_fits_too(browser: Browser, make_evaluation, tmp_path: Path) -> None:
    found = [make_evaluation(name=name) for name in ("a", EVIL, "c" * 60)]
    pairs = [
        {"first": i, "second": j, "difference": i - 1.5 * j, "low": -9.0, "high": 9.0, "p": 0.5, "p_corrected": 1.0}
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    protocol = {"paired": True, "bootstrap": {"draws": 9, "level": 0.9}, "correction": "Holm", "warnings": []}
    result = {
        "sets": [one.result for one in found],
        "comparisons": {key: {"best": 1, "pairs": pairs} for key in ("fd", "recall")},
        "protocol": protocol,
    }
    write_comparison_report(tmp_path / "compared.html", result, found)
    browser.open(tmp_path / "compared.html", width=PHONE)
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.run("return document.documentElement.scrollWidth") == PHONE
    assert browser.log() == []
    browser.open(tmp_path / "compared.html")
    browser.click(".pairs th:nth-child(3) button")
    assert browser.run(
        "return [...document.querySelectorAll('.pairs td:nth-child(3)')].map(td => td.dataset.value)"
    ) == [*("-3.0", "-3.0", "-2.0", "-2.0", "-1.5", "-1.5")]


def test_it_follows_the_light(browser: Browser, report: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser.open(report)
    assert browser.run(paper) == "rgb(255, 255, 255)"
    browser.open(report, dark=True)
    assert browser.run(paper) == "rgb(18, 22, 27)"
    text = "return getComputedStyle(document.querySelector('svg text')).fill"
    assert browser.run(text) == browser.run("return getComputedStyle(document.body).color")


def test_the_json_can_be_taken_out(browser: Browser, report: Path) -> None:
    browser.open(report)
    text = browser.run(
        "const link = document.querySelector('a[download]');"
        "return new TextDecoder().decode(Uint8Array.from(atob(link.href.split('base64,')[1]), c => c.charCodeAt(0)))"
    )
    assert json.loads(text)["protocol"]["samples"] == EVIL
