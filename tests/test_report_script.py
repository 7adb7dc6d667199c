"""What the report's script adds, in a real browser: verbs, order, heads of the table, enlarging."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from egogen.atomic import write_text
from metrics.reporting.data import ReportData, Sample, select
from metrics.reporting.html import page as report

LABELS = ("#C C cuts a loaf", "#C C cuts an apple", "put down cup", "#C C opens a door", "pour")
PSNR = (21.5, 9.25, 30.0, math.nan, 12.125)
LPIPS = (0.5, 0.125, 0.25, 0.75, 0.0625)  # lower is better


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("report")
    samples = []
    for place, label in enumerate(LABELS):
        files = []
        for kind, shade in (("source", 40), ("generated", 120), ("target", 200)):
            files.append(folder / f"{kind}{place}.png")
            Image.new("RGB", (32, 20), (shade, 20 * place, 90)).save(files[-1])
        figures = {"psnr": PSNR[place], "lpips_alex": LPIPS[place]}
        figures = {name: value for name, value in figures.items() if not math.isnan(value)}
        samples.append(Sample(f"clip{place}/0", label, "So.", *files, figures))
    data = ReportData("Frames", "of a test", samples, "psnr", {"psnr": 18.2, "lpips_alex": 0.3})
    write_text(folder / "report.html", report(data, select(samples, 2, 2, 1)))
    return (folder / "report.html").as_uri()


def shown(page) -> list[str]:
    """Keys of the samples that are to be seen, from top to bottom."""
    found = page.locator("article.sample:visible .key")
    return [text.removesuffix("/0").removeprefix("clip") for text in found.all_inner_texts()]


def rows(page) -> list[str]:
    found = page.locator("table.frames tr:visible th[data-verb] small")
    return [text.removesuffix("/0").removeprefix("clip") for text in found.all_inner_texts()]


def test_a_verb_leaves_its_frames_alone(address, browser_page):
    with browser_page() as page:
        page.goto(address)
        page.click("details summary")
        assert shown(page) == ["0", "1", "4", "3", "2"] and rows(page) == list("01234")
        verbs = page.locator("#verb option").all_inner_texts()
        assert verbs == ["all verbs", "cut", "open", "pour", "put"]
        page.select_option("#verb", "cut")
        assert shown(page) == ["0", "1"] == rows(page)
        assert not page.is_visible("#worst") and not page.is_visible("#others")
        assert page.inner_text("#shown") == "2 of 5 with pictures"
        assert page.inner_text("details summary").startswith("2 of 5 frames")
        page.select_option("#verb", "open")
        assert shown(page) == ["3"] == rows(page) and not page.is_visible("#best")
        page.select_option("#verb", "")
        assert shown(page) == ["0", "1", "4", "3", "2"] and rows(page) == list("01234")
        assert page.asked == [address]


def test_samples_are_sorted_by_a_figure_either_way(address, browser_page):
    with browser_page() as page:
        page.goto(address)
        assert not page.is_visible("#way") and not page.is_visible("#sorted")
        page.select_option("#order", label="PSNR")
        assert shown(page) == ["2", "0", "4", "1", "3"]  # what has no value is last
        assert not page.is_visible("#best") and page.is_visible("#sorted")
        page.select_option("#way", label="worst first")
        assert shown(page) == ["1", "4", "0", "2", "3"]
        page.select_option("#order", label="LPIPS AlexNet")
        assert shown(page) == ["3", "0", "2", "1", "4"]
        page.select_option("#way", label="best first")
        page.select_option("#verb", "cut")
        assert shown(page) == ["1", "0"]
        page.select_option("#verb", "")
        page.select_option("#order", label="as chosen")
        assert shown(page) == ["0", "1", "4", "3", "2"] and page.is_visible("#best")


def test_heads_of_the_table_sort_it(address, browser_page):
    with browser_page() as page:
        page.goto(address)
        page.click("details summary")
        heads = page.locator("table.frames th button")
        assert heads.all_inner_texts() == ["Action", "PSNR\xa0↑", "LPIPS AlexNet\xa0↓"]
        heads.nth(1).click()
        assert rows(page) == list("20413")
        heads.nth(1).click()
        assert rows(page) == list("14023")
        heads.nth(2).focus()
        page.keyboard.press("Enter")
        assert rows(page) == list("41203")
        assert "by LPIPS AlexNet" in page.inner_text("details summary")
        sorts = page.eval_on_selector_all(
            "table.frames th[aria-sort]", "all => all.map((x) => x.getAttribute('aria-sort'))"
        )
        assert sorts == ["ascending"]
        heads.nth(0).click()
        assert rows(page) == list("01342")


def colour(page, selector: str) -> list[int]:
    """Of the middle of a picture as it is shown, rounded to tens (it is a JPEG)."""
    return page.evaluate(
        """(selector) => { const image = document.querySelector(selector);
        const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
        const ink = canvas.getContext("2d"); ink.drawImage(image, 0, 0, 1, 1);
        return [...ink.getImageData(0, 0, 1, 1).data].map((x) => 10 * Math.round(x / 10)); }""",
        selector,
    )


def test_a_click_enlarges_and_keys_lead_on(address, browser_page):
    with browser_page() as page:
        page.goto(address)
        first = page.locator("#best .generated img").first
        width = first.bounding_box()["width"]
        first.click()
        assert (
            page.is_visible("#large") and page.inner_text("#large p") == f"Generated: {LABELS[0]}"
        )
        page.evaluate("document.querySelector('#large img').decode()")
        assert page.locator("#large img").bounding_box()["width"] > 2 * width
        assert colour(page, "#large img")[:2] == [120, 0]
        for key, shade, place in (
            ("ArrowRight", 200, 0),
            ("ArrowRight", 40, 0),
            ("ArrowLeft", 200, 0),
            ("ArrowDown", 200, 1),
            ("ArrowDown", 200, 4),
            ("ArrowUp", 200, 1),
        ):
            page.keyboard.press(key)
            page.evaluate("document.querySelector('#large img').decode()")
            assert colour(page, "#large img")[:2] == [shade, 20 * place], key
        page.keyboard.press("Escape")
        assert not page.is_visible("#large")
        # The picture that was shown last has the focus, once the closing has been told.
        page.wait_for_function(f"document.activeElement.alt?.includes({LABELS[1]!r})")
        page.keyboard.press("Enter")
        assert page.is_visible("#large") and LABELS[1] in page.inner_text("#large p")
        page.mouse.click(5, 5)
        assert not page.is_visible("#large")


def test_arrows_pass_over_what_is_filtered_away(address, browser_page):
    with browser_page() as page:
        page.goto(address)
        page.select_option("#verb", "cut")
        page.locator("#best .source img").first.click()
        for key in ("ArrowDown", "ArrowDown", "ArrowDown"):
            page.keyboard.press(key)
        assert LABELS[1] in page.inner_text("#large p")  # the last one that is left
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        assert LABELS[0] in page.inner_text("#large p")


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1200, "dark")])
def test_nothing_is_wider_than_the_window(address, tmp_path, width, scheme, browser_page):
    with browser_page(width, 800, scheme) as page:
        page.goto(address)
        page.click("details summary")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for name in ("#choose", "#best", "#frames"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_without_scripts_all_is_there(address, tmp_path, browser_page):
    with browser_page() as page:
        context = page.context.browser.new_context(java_script_enabled=False)
        plain = context.new_page()
        plain.goto(address)
        assert plain.locator("article.sample:visible").count() == 5
        assert plain.locator("#choose, dialog").count() == 0
        plain.click("details summary")
        assert plain.locator("table.frames tr:visible").count() == 6


def test_a_report_without_frames_has_no_bar(tmp_path, browser_page):
    data = ReportData("", "", [], "", {"psnr": 1.0})
    write_text(tmp_path / "r.html", report(data, {"best": [], "worst": [], "others": []}))
    with browser_page() as page:
        page.goto((tmp_path / "r.html").as_uri())
        assert page.locator("#choose").count() == 0


def test_a_label_stays_text(tmp_path, browser_page):
    evil = '"><script>document.title="x"</script>{{ 7 * 7 }}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    sample = Sample("c/0", evil, evil, path, path, path, {"psnr": 1.0})
    data = ReportData("Frames", "", [sample], "psnr", {})
    write_text(tmp_path / "r.html", report(data, select([sample], 1, 0, 0)))
    with browser_page() as page:
        page.goto(Path(tmp_path / "r.html").as_uri())
        page.locator("img").first.click()
        assert page.title() == "Frames" and evil in page.inner_text("#large p")
        assert json.dumps(evil)[1:20] not in page.inner_text("#choose")
