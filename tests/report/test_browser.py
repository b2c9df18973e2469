"""The pages as a reader meets them: in a browser, from a file, without a network."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bsdkit.report.page import write_page
from bsdkit.report.page.collect import make_comparison, make_report, report_of
from bsdkit.runs.folder import load_run
from bsdkit.store.store import Store
from tests.report.conftest import EVIL, N_CLIPS, Made
from tests.report.test_page import large

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the tests in a browser need pip install 'bsdkit[browser]'"
)


@dataclass
class Visit:
    """An open page, and what went on in it."""

    page: playwright.Page
    url: str
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def until(self, expression: str) -> None:
        """Waits for JavaScript to be true; the page's own policy forbids the browser's way."""
        end = time.monotonic() + 8
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            self.page.wait_for_timeout(20)

    def overflow(self) -> int:
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(script))

    def rows(self, table: str = "#clips") -> list[str]:
        found: list[str] = self.page.locator(f"{table} tbody tr th").all_inner_texts()
        return found

    def count(self) -> str:
        return str(self.page.locator("#clips .status").inner_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    from tests.report.screenshot import FLAGS, NAMES, find_browser

    path = find_browser()
    if path is None:
        pytest.skip(f"no browser here ({', '.join(NAMES)}); BSDKIT_CHROMIUM may name one")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("html") / "some #1 folder"
    paths = {name: folder / f"{name}.html" for name in ("run", "two", "large")}
    make_report(made.run, data=made.data, out=paths["run"])
    make_comparison(made.run, made.other, paths["two"], data=made.data)
    write_page(paths["large"], large(report_of(load_run(made.run), Store(made.store)), 10_956))
    return paths


@pytest.fixture
def visit(browser: playwright.Browser, pages: dict[str, Path]) -> Iterator:  # type: ignore[type-arg]
    opened = []

    def go(name: str = "run", width: int = 1280, height: int = 900, scheme: str = "light") -> Visit:
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        found = Visit(page, pages[name].as_uri())
        page.on("console", lambda message: found.faults.append(message.text))
        page.on("pageerror", lambda error: found.faults.append(str(error)))
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(found.url)
        return found

    yield go
    for context in opened:
        context.close()


def test_it_loads_quietly_and_asks_for_nothing(visit) -> None:  # type: ignore[no-untyped-def]
    for name in ("run", "two"):
        here = visit(name)
        here.page.locator("nav a").last.click()
        assert not here.faults
        assert [url for url in here.requests if not url.startswith("data:")] == [here.url]
        assert here.page.evaluate("window.evil") is None


def test_a_strange_title_is_shown_as_it_is(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit()
    here.page.locator("#clips input[type=checkbox]").uncheck()
    here.page.get_by_label("search title").fill("window.evil=1")
    here.until("document.querySelectorAll('#clips tbody tr').length === 1")
    shown = here.page.locator("#clips td.words").inner_text().partition("\nmade")[0]
    assert " ".join(shown.split()) == " ".join(EVIL.split())
    assert here.page.evaluate("window.evil") is None and not here.faults


def test_tables_sort(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit()
    head = here.page.locator("#classes thead th", has_text="hF").first
    column = (
        "[...document.querySelectorAll('#classes tbody tr')].map(r => Number(r.cells[3].dataset.v))"
    )
    head.get_by_role("button").click()
    falling = here.page.evaluate(column)
    assert head.get_attribute("aria-sort") == "descending"
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 1
    head.get_by_role("button").press("Enter")  # by keyboard
    assert here.page.evaluate(column) == falling[::-1]
    here.page.locator("#clips input[type=checkbox]").uncheck()
    assert here.rows()[:3] == ["c000", "c001", "c002"]
    here.page.get_by_role("button", name="probability, %").click()
    cells = (
        "[...document.querySelectorAll('#clips tbody tr')].map(r => Number(r.cells[5].textContent))"
    )
    assert here.page.evaluate(cells) == sorted(here.page.evaluate(cells), reverse=True)


def test_clips_are_filtered_searched_and_paged(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit()
    page = here.page
    n_wrong = page.evaluate("document.querySelectorAll('#clips .wrong').length")
    assert here.count().startswith(f"{n_wrong} of {N_CLIPS} clips") and 0 < n_wrong < 50
    page.locator("#clips input[type=checkbox]").uncheck()
    assert here.count().startswith(f"{N_CLIPS} of {N_CLIPS}") and len(here.rows()) == 50
    page.get_by_role("button", name="last page").click()
    assert here.rows()[-1] == "c159" and len(here.rows()) == 10
    page.get_by_role("button", name="previous page").click()
    assert here.rows()[0] == "c100" and "page 3 of 4" in page.locator(".pager").inner_text()
    page.get_by_label("search title").fill("Number3 user7")
    here.until("document.querySelectorAll('#clips tbody tr').length < 50")
    expected = [f"c{i:03d}" for i in range(N_CLIPS) if i % 4 == 3 and i % 23 == 7]
    assert here.rows() == expected
    page.get_by_label("search title").fill("")
    page.locator("#true-0").select_option(label="hiss")
    assert here.count().startswith("64 of")
    page.locator("#true-0").select_option(label="tone-b")
    assert here.rows() == [f"c{i:03d}" for i in range(1, N_CLIPS, 5)]
    page.get_by_label("search title").fill("no such thing")
    here.until("document.querySelector('#clips .status').textContent.includes('none')")
    page.get_by_role("button", name="Reset").click()
    assert here.count().startswith(f"{n_wrong} of")


def test_a_cell_of_the_matrix_lists_its_clips(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit()
    page = here.page
    cells = page.locator("#confusion .matrix").first.locator("tbody td")
    cells.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    tone_b = cells.nth(6)  # row and column 1 of 5
    n = int(tone_b.inner_text())
    status = page.locator("#confusion .status").first.inner_text()
    assert status.startswith(f"tone-b predicted right: {n} of 32 clips")
    page.keyboard.press("Enter")
    assert here.count().startswith(f"{n} of") and len(here.rows()) == n
    page.get_by_label("% of the row").first.check()
    assert float(tone_b.inner_text()) == pytest.approx(100 * n / 32, abs=0.5)


def test_the_map_opens_clips(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit()
    page = here.page
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#map-status").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert "predicted" in first and page.locator("#map-status").inner_text() != first
    told = page.locator("#map-status").inner_text()
    page.keyboard.press("Enter")
    row = page.locator("#clips tr.here")
    assert row.locator("td.words").inner_text().partition("\n")[0] == told.partition(":")[0]
    assert row.evaluate("row => row === document.activeElement")
    # by pointer: from the tip's place, until a clip is under the pointer
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tip = page.locator(".tip")
    for step in range(60):
        page.mouse.move(
            box["x"] + box["width"] * (0.3 + 0.4 * step / 60), box["y"] + box["height"] / 2
        )
        page.wait_for_timeout(30)
        if tip.is_visible():
            break
    told = tip.inner_text()
    page.mouse.down()
    page.mouse.up()
    assert page.locator("#clips tr.here td.words").inner_text().startswith(told.partition(":")[0])
    assert not here.faults
    # families
    dark = (
        "(() => { const c = document.querySelector('canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < d.length;"
        " i += 4) n += d[i] > 0; return n; })()"
    )
    page.mouse.move(0, 0)
    before = page.evaluate(dark)
    for button in page.locator(".legend button").all():
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
    assert before > 1000 and page.evaluate(dark) == 0


def test_sounds_play_when_asked(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit()
    page = here.page
    page.locator("#clips input[type=checkbox]").uncheck()
    assert len(page.locator("#clips button.play").all()) == 49  # c009 has no sound
    assert not [url for url in here.requests if ".wav" in url]
    button = page.locator("#clips tr[data-clip='4'] button.play")
    button.click()
    here.until("(() => { const a = document.querySelector('#player');"
                           " return a && a.readyState >= 2 && a.currentTime > 0; })()")  # fmt: skip
    asked = [url for url in here.requests if ".wav" in url]
    assert {url.rpartition("/")[2] for url in asked} == {"c004.wav"}
    assert page.evaluate("document.querySelector('#player').error") is None
    here.until("document.querySelector('#player').ended")
    assert button.get_attribute("aria-pressed") == "false" and not here.faults


def test_two_runs_have_a_page_of_their_own(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit("two")
    sides = ("#only-a", "#only-b")
    shown = [set(here.rows(side)) for side in sides]
    assert shown[0] or shown[1]
    assert not shown[0] & shown[1]
    for side, place in zip(sides, (4, 6), strict=True):
        for row in here.page.locator(f"{side} tbody tr").all()[:5]:
            assert "wrong" not in (row.locator("td").nth(place - 1).get_attribute("class") or "")
            assert row.locator(".wrong").count() == 1
    assert here.overflow() <= 0


def test_eleven_thousand_clips_stay_fluid(visit) -> None:  # type: ignore[no-untyped-def]
    here = visit("large")
    assert here.page.locator("#clips tbody tr").count() == 50
    milliseconds = here.page.evaluate("""() => {
        const times = [], box = document.querySelector('#clips');
        const run = (f) => { const t = performance.now(); f(); times.push(performance.now() - t); };
        run(() => box.querySelector('input[type=checkbox]').click());
        for (const head of box.querySelectorAll('thead button')) run(() => head.click());
        return Math.max(...times);
    }""")
    assert here.count().startswith("10,956 of 10,956")
    here.page.get_by_role("radio", name="UMAP").check()
    assert here.page.locator("canvas").evaluate("canvas => canvas.width") > 500
    assert not here.faults
    assert milliseconds < 3000  # some 150 on a laptop; rows of all clips would take many seconds


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(visit, tmp_path: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    folder = Path(os.environ.get("BSDKIT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("run", "two"):
        here = visit(name, width=width, scheme=scheme)
        assert here.overflow() <= 0
        back = here.page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(back.partition("(")[2].partition(",")[0])
        assert (red < 60) == (scheme == "dark")
        path = folder / f"{name}-{width}-{scheme}.png"
        here.page.screenshot(
            path=path, full_page=name == "run" or "BSDKIT_SCREENSHOTS" in os.environ
        )
        assert path.stat().st_size > 10_000 and not here.faults
