"""The page in a real browser, on tiny models: all that a visitor does."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from browser import NAMES
from page_server import Server, tiny_models
from PIL import Image
from small_dataset import picture

from lego.frame import main

ACTIONS = ("open the jar", "pick up the mug")
LONG = 1000  # steps, so many that they take longer than a test waits
# A frame may follow another so quickly that no look at the page sees anything but "Done.".
NOTES_THAT_IT_BEGAN = """() => {
  const status = document.querySelector("#status");
  window.began = false;
  const look = () => window.began ||= !status.querySelector(".hide");
  new MutationObserver(look).observe(status, {subtree: true, attributes: true, childList: true});
}"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    server = Server.start(tmp_path_factory.mktemp("server"), *models, "--max-new-tokens", "150")
    yield server
    assert server.stop() == 143
    assert not [*(server.log.parent / "tmp").iterdir()], "files of visitors were left"
    assert "/lego/" not in (log := server.log.read_text()), log  # no traceback of ours


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = "no chromium on this machine; install it with: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "my kitchen.png"
    picture(3, (90, 60)).save(path)
    return path


class Visitor:
    """A browser window on the page, and what its owner does there."""

    def __init__(self, browser, server, width=1280, height=900, query=""):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.address + query)
        self.page.wait_for_selector("#make")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def box(self, name):
        return self.page.locator(f"#{name} textarea, #{name} input").first

    def upload(self, path):
        self.page.locator("#source input[type=file]").set_input_files(path)

    def has(self, text):
        self.page.wait_for_selector(f"#status:has-text({text!r})")

    def brings(self, photo, action, steps=2):
        self.upload(photo)
        self.has("Name an action")
        self.box("action").fill(action)
        self.sets("steps", steps)

    def sets(self, name, value):
        if not self.page.locator("#steps").is_visible():
            self.page.locator("#advanced button").first.click()
            self.page.wait_for_timeout(300)  # it fills its fields when it has opened
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.blur()
        self.page.wait_for_timeout(100)
        assert field.input_value() == str(value)

    def presses(self, name):
        self.page.locator(f"#{name}").click()

    def makes(self):
        self.page.evaluate(NOTES_THAT_IT_BEGAN)
        self.presses("make")
        self.page.wait_for_function("window.began")
        self.page.wait_for_selector("#status:has(.hide):has-text('Done.')")

    def all_files(self):
        with self.page.expect_download() as download:
            self.page.locator("#zip").click()
        return zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))

    def line(self):
        """The one line in which the page says what is wrong; it is closed then."""
        toast = self.page.wait_for_selector(".toast-body")
        text = " ".join(toast.inner_text().split())
        self.page.locator(".toast-close").first.click()
        self.page.wait_for_selector(".toast-body", state="detached")
        return text


def shape(files) -> list[str]:
    return sorted(files.namelist())


def test_a_photograph_becomes_frames_one_from_the_other(server, browser, models, photo, tmp_path):
    """And these are, bit by bit, those of the command, which nothing from outside is needed for."""
    with Visitor(browser, server) as visitor:
        visitor.brings(photo, ACTIONS[0], steps=3)
        visitor.makes()
        visitor.page.screenshot(path=tmp_path / "page.png", full_page=True)
        visitor.presses("next")
        visitor.has("next action")
        assert visitor.box("action").input_value() == visitor.box("text").input_value() == ""
        visitor.box("action").fill(ACTIONS[1])
        visitor.makes()
        visitor.page.locator("#strip img").nth(2).wait_for()
        assert visitor.page.locator("#strip img").count() == 3
        files = visitor.all_files()
        outside = [
            url for url in visitor.asked if not url.startswith((server.address, "data:", "blob:"))
        ]
        assert not outside and len(visitor.asked) > 20
    names = [f"my-kitchen-{k}-seed{seed}" for k, seed in ((1, 7), (2, 8))]
    assert shape(files) == sorted(
        [f"{n}.{x}" for n in names for x in ("json", "png")] + ["my-kitchen.png"]
    )
    records = [json.loads(files.read(f"{name}.json")) for name in names]
    assert [record["action"] for record in records] == [*ACTIONS]
    assert [record["source"] for record in records] == ["my-kitchen.png", f"{names[0]}.png"]
    assert not [text for text in map(str, records) if str(Path(models[1]).parent) in text]
    typed = [*models, "--image", str(photo), "--max-new-tokens", "150", *records[0]["overrides"]]
    typed += [f"--action={action}" for action in ACTIONS]
    assert main([*typed, "--out", str(tmp_path / "a.png")]) == 0
    for number, (name, record) in enumerate(zip(names, records, strict=True), 1):
        assert files.read(f"{name}.png") == (tmp_path / f"a-{number}.png").read_bytes()
        same = json.loads((tmp_path / f"a-{number}.json").read_text())
        assert {key: record[key] for key in ("description", "seed", "loras")} == {
            key: same[key] for key in ("description", "seed", "loras")
        }


def test_a_text_appears_as_it_is_written_and_its_change_changes_the_frame(server, browser, photo):
    with Visitor(browser, server) as visitor:
        visitor.brings(photo, ACTIONS[0])
        visitor.page.evaluate(
            "window.seen = []; const box = document.querySelector('#text textarea');"
            "setInterval(() => seen.push(box.value), 5)"
        )
        visitor.box("action").press("Enter")
        visitor.has("Done.")
        text = visitor.box("text").input_value()
        seen = [x for x in dict.fromkeys(visitor.page.evaluate("seen")) if x]
        assert len(seen) > 1 and all(text.startswith(x.rstrip("\ufffd")) for x in seen), seen
        visitor.makes()
        visitor.box("text").fill("both hands open the blue jar")
        visitor.makes()
        files = visitor.all_files()
        edited = (
            files.read("my-kitchen-1-seed7.png"),
            json.loads(files.read("my-kitchen-1-seed7.json")),
        )
        assert edited[1]["description"] == "both hands open the blue jar"
        assert edited[1]["described"] == {"edited": True}
        # Another action does not get the text that was written for this one.
        visitor.box("action").fill(ACTIONS[1])
        visitor.makes()
        record = json.loads(visitor.all_files().read("my-kitchen-1-seed7.json"))
        assert record["action"] == ACTIONS[1] and record["described"]["edited"] is False


def test_several_seeds_are_made_at_once_and_one_is_gone_on_from(server, browser, photo, tmp_path):
    with Visitor(browser, server) as visitor:
        visitor.brings(photo, ACTIONS[0])
        visitor.sets("seeds", 3)
        visitor.sets("seed", 20)
        visitor.makes()
        frames = visitor.page.locator("#frames button.thumbnail-item")
        frames.nth(2).wait_for()
        assert frames.count() == 3
        frames.nth(1).click()
        visitor.has("Chosen.")
        visitor.page.screenshot(path=tmp_path / "seeds.png", full_page=True)
        visitor.presses("next")
        visitor.has("next action")
        assert visitor.page.locator("#seed input").input_value() == "23"
        visitor.box("action").fill(ACTIONS[1])
        visitor.sets("seeds", 1)
        visitor.makes()
        files = visitor.all_files()
        first = {files.read(f"my-kitchen-1-seed{seed}.png") for seed in (20, 21, 22)}
        assert len(first) == 3
        assert (
            json.loads(files.read("my-kitchen-2-seed23.json"))["source"]
            == "my-kitchen-1-seed21.png"
        )


def test_who_stops_or_leaves_gives_the_device_to_who_waits(server, browser, photo, tmp_path):
    waiting = "#status:has-text('queue: 1/1')"
    with Visitor(browser, server) as one, Visitor(browser, server) as other:
        one.brings(photo, ACTIONS[0], steps=LONG)
        other.brings(photo, ACTIONS[1])
        one.presses("make")
        one.has("s left")
        other.presses("make")
        other.page.wait_for_selector(waiting)
        other.page.screenshot(path=tmp_path / "waiting.png")
        other.presses("stop")  # who waits can leave the line
        other.has("Stopped.")
        other.presses("make")
        other.page.wait_for_selector(waiting)
        one.presses("stop")
        one.has("Stopped.")
        other.has("Done.")
        one.presses("make")
        one.has("s left")
        one.context.close()
        other.makes()


COPY = """async () => {
  const canvas = document.createElement("canvas");
  canvas.width = 80; canvas.height = 60;
  const blob = await new Promise(done => canvas.toBlob(done));
  await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
}"""


# A browser beside other work does not always give camera and clipboard in time.
@pytest.mark.slow("camera and clipboard of the page")
def test_camera_and_clipboard_give_photographs_too(server, browser):
    with Visitor(browser, server) as visitor:
        visitor.context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
        buttons = visitor.page.locator("#source")
        visitor.page.evaluate(COPY)
        buttons.get_by_label("Paste from clipboard").click()
        visitor.has("Name an action")
        buttons.get_by_label("Remove Image").click()
        buttons.get_by_label("Capture from camera").click()
        buttons.get_by_text("Click to Access Webcam").click()
        visitor.page.wait_for_function("document.querySelector('#source video')?.videoWidth > 0")
        buttons.get_by_label("capture photo").click()
        visitor.page.wait_for_selector("#source img")


@pytest.mark.parametrize("query", ["", "?__theme=dark"], ids=["light", "dark"])
def test_a_telephone_shows_it_without_scrolling_sideways(query, server, browser, photo, tmp_path):
    with Visitor(browser, server, 360, 740, query) as visitor:
        visitor.page.locator("#examples button").first.click()
        visitor.has("Name an action")
        assert visitor.box("action").input_value() == "open the jar"
        if not query:
            visitor.sets("steps", 2)
            visitor.makes()
        visitor.page.screenshot(path=tmp_path / "telephone.png", full_page=True)
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360
        places = [visitor.page.locator(f"#{x}").bounding_box() for x in ("source", "text", "frame")]
        assert [p["y"] for p in places] == sorted(p["y"] for p in places)
        assert all(p["x"] >= 0 and p["x"] + p["width"] <= 360 for p in places)
    shot = Image.open(tmp_path / "telephone.png").convert("L")
    assert (shot.resize((1, 1)).getpixel((0, 0)) < 110) is bool(query)
