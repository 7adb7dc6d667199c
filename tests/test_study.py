"""A study with people: the page in a real browser, the server, and the count by hand."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_dataset import write_dataset

from egogen import layout
from egogen.actions import read_actions
from metrics import study
from metrics.reporting.study import in_turn

PROJECT = Path(__file__).parents[1]
RUNS = ("plain-baseline", "with-features")


def command(*words: object) -> int:
    return study.main([str(word) for word in words])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset of four frames, two runs over it, of other sizes, and a study of three frames."""
    folder = tmp_path_factory.mktemp("study")
    root = write_dataset(folder / "data", splits=("val",))
    frames = layout.frame_folder(root, "ego4d", "val")
    path = layout.action_file(root, "ego4d", "val")
    content = json.loads(path.read_text())
    content["ego4d-val-clip1"]["0"]["action"] = "#C C cuts </script><b>&amp; thing"
    path.write_text(json.dumps(content))
    for run, share, scale in zip(RUNS, (0.2, 0.8), (1, 2), strict=True):
        for entry in read_actions(path):
            source, target = (Image.open(frames / x) for x in (entry.image_0, entry.image_1))
            made = folder / run / "images" / Path(entry.image_1).with_suffix(".png")
            made.parent.mkdir(parents=True)
            size = source.width * scale, source.height * scale
            Image.blend(source, target, share).resize(size).save(made)
    runs = [folder / run for run in RUNS]
    out = folder / "out"
    assert (
        command("make", *runs, "--dataset-root", root, "--out", out, "--count", 3, "--checks", 1)
        == 0
    )
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def items(world: Path, check: bool = False) -> list[tuple[str, dict[str, str], dict]]:
    """(question, {name: frame}, what the key says) of the votes, or of the checks."""
    found = read(world / "out/key.json")["items"]
    return [
        (number, {name: frame for frame, name in item["names"].items()}, item)
        for number, item in sorted(found.items(), key=lambda pair: pair[1]["sample"])
        if bool(item["right"]) == check
    ]


def write_votes(
    world: Path, folder: Path, rater: str, runs: list[str | None], fail=False, **more: object
) -> Path:
    """votes/RATER.json: a run or none for each sample, in the order of their names."""
    answers = {
        number: frames.get(run)
        for (number, frames, _), run in zip(items(world), runs, strict=False)
    }
    for number, _, item in items(world, check=True):
        answers[number] = None if fail else item["right"]
    study = read(world / "out/key.json")["study"]
    votes = {"study": study, "rater": rater, "browser": f"b-{rater}", "answers": answers, **more}
    path = folder / f"{rater}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(votes))
    return path


# --- the page and its key


def test_the_page_hides_which_run_is_which(world):
    text, key = (world / "out/index.html").read_text(), read(world / "out/key.json")
    for secret in (*RUNS, "ego4d-val-clip", "frame_0000", str(world), ".png", ".jpg"):
        assert secret not in text
    assert set(RUNS) == set(key["runs"]) and len(key["items"]) == 4
    content = json.loads(re.search(r'id="content">(.+?)</script>', text).group(1))
    assert [x["id"] for x in content["items"]] == sorted(key["items"])
    for item in content["items"]:
        names = key["items"][item["id"]]["names"]
        assert [frame for frame, _ in item["frames"]] == sorted(names)
        sizes = set()
        for uri in (item["source"], *(uri for _, uri in item["frames"])):
            assert uri.startswith("data:image/jpeg;base64,")
            sizes.add(len(uri) > 500)
        assert sizes == {True}
    assert "cut </script>" not in text and "cut \\u003c/script" in text.replace("cuts", "cut")
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "@import" not in text


def test_all_pictures_of_a_question_have_one_size(world, browser_page):
    text = (world / "out/index.html").read_text()
    with browser_page() as page:
        page.set_content(text)
        sizes = page.evaluate(
            """async () => Promise.all(content.items.flatMap((item) =>
            [item.source, ...item.frames.map((one) => one[1])]).map(async (uri) => {
            const image = new Image(); image.src = uri; await image.decode();
            return [image.naturalWidth, image.naturalHeight].join("x"); }))"""
        )
    assert set(sizes) == {"45x26"} and len(sizes) == 12  # one run's are twice as large


def test_checks_show_the_true_frame_among_other_clips(world):
    voted = {item["sample"] for _, _, item in items(world)}
    ((_, frames, item),) = items(world, check=True)
    assert item["names"][item["right"]] == item["sample"] not in voted
    others = set(frames) - {item["sample"]}
    assert len(frames) == 2 and all(x.split("/")[0] != item["sample"].split("/")[0] for x in others)


def test_what_is_shown_is_drawn_from_the_seed_with_all_verbs(world, tmp_path):
    entries = read_actions(layout.action_file(world / "data", "ego4d", "val"))
    for seed in range(5):
        first = in_turn(entries, seed)
        assert "cuts" in {x.label.split()[2] for x in first[:2]}  # one of four frames
        assert sorted(x.key for x in first) == sorted(x.key for x in entries)
    assert len({tuple(x.key for x in in_turn(entries, seed)) for seed in range(9)}) > 3
    assert in_turn(entries, 1) == in_turn(entries[::-1], 1)


def test_runs_are_found_as_compare_finds_them(world, tmp_path):
    (world / RUNS[0] / "metric").mkdir(exist_ok=True)
    ways = world / RUNS[0] / "metric", world / RUNS[1] / "images"
    more = ("--dataset-root", world / "data", "--out", tmp_path / "s", "--checks", 0)
    assert command("make", *ways, *more) == 0
    key = read(tmp_path / "s/key.json")
    assert key["runs"] == list(RUNS) and len(key["items"]) == 4


# --- in a browser


def start(page, address: str, rater: str) -> None:
    page.goto(address)
    page.fill("#rater", rater)
    page.click("text=Start")
    page.wait_for_selector("#ask:not([hidden])")


def press(page, key: str) -> None:
    """A key, as if some time had passed: what comes right after an answer is no answer."""
    page.evaluate("shownAt = -1e9")
    page.keyboard.press(key)


def place(page) -> str:
    return page.inner_text("#place")


def frames_shown(page) -> list[str]:
    return page.eval_on_selector_all("#choices button", "all => all.map((x) => x.dataset.frame)")


def test_voting_by_click_and_key_reload_and_download(world, tmp_path, browser_page):
    with browser_page() as page:
        start(page, (world / "out/index.html").as_uri(), "Anna")
        assert place(page) == "1 of 4" and page.locator("#choices img").count() == 2
        seen = page.content() + page.inner_text("body")
        assert not any(name in seen for name in (*RUNS, "clip0", str(world / "plain")))
        chosen = [frames_shown(page)[1]]
        page.evaluate("shownAt = -1e9")
        page.locator("#choices button").nth(1).click()
        page.evaluate("shownAt = performance.now() + 1e5")
        page.keyboard.press("1")  # too soon: the second tap of a double tap
        assert place(page) == "2 of 4"
        chosen.append(frames_shown(page)[0])
        press(page, "1")
        press(page, "5")  # there is no fifth
        assert place(page) == "3 of 4"
        order = frames_shown(page)
        page.reload()
        assert place(page) == "3 of 4" and frames_shown(page) == order
        press(page, "0")
        page.click("#back")
        assert "chosen" in page.get_attribute("#none", "class")
        press(page, "0")
        page.evaluate("shownAt = -1e9")
        page.click("#none")
        page.wait_for_selector("#end:not([hidden])")
        with page.expect_download() as coming:
            page.click("#again")
        assert coming.value.suggested_filename == "votes-anna.json"
        coming.value.save_as(tmp_path / "votes-anna.json")
        assert page.asked == 2 * [(world / "out/index.html").as_uri()]
    votes = read(tmp_path / "votes-anna.json")
    assert list(votes["answers"].values()) == [*chosen, None, None] and votes["rater"] == "anna"
    more = ("--study", world / "out", "--out", tmp_path / "v.json", "--may-fail", 1)
    assert command("count", tmp_path / "votes-anna.json", *more) == 0


def test_each_rater_has_an_order_of_his_own_and_may_follow_another(world, browser_page):
    found = {}
    with browser_page() as page:
        for rater in ("r1", "r2", "r3", "r4", "r5", "r1"):
            page.goto(f"{(world / 'out/index.html').as_uri()}?rater={rater}")
            drawn = page.evaluate(
                "order.map((x) => [x.id, ...x.frames.map((one) => one[0])].join())"
            )
            assert found.setdefault(rater, drawn) == drawn
        many = page.evaluate(
            """[...Array(400).keys()].map((n) => shuffled(["a", "b"], `rater${n} 5e0f`)[0])"""
        )
        page.evaluate("at = order.length; show()")
        page.click("text=Another person votes")
        assert page.is_visible("#start")
        page.fill("#rater", "a b")
        page.click("text=Start")
        assert page.is_visible("#refused") and page.is_visible("#start")
    assert len({tuple(order) for order in found.values()}) >= 4
    assert 160 < many.count("a") < 240  # four deviations


@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1200, "dark")])
def test_it_fits_a_phone_and_follows_the_scheme(world, tmp_path, width, scheme, browser_page):
    with browser_page(width, 800, scheme) as page:
        start(page, (world / "out/index.html").as_uri(), "eve")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.documentElement.scrollHeight") < 1000
        page.screenshot(path=tmp_path / "page.png")
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("L"), np.float64)
    assert picture[:, :6].mean() > 200 if scheme == "light" else picture[:, :6].mean() < 60
    assert picture.std() > 10


# --- the server


@pytest.fixture
def server(world):
    """-> (host and port, folder of the study's votes) of `study.py serve`, on a port of its own."""
    words = [PROJECT / "metrics/study.py", "serve", "--study", world / "out", "--port", 0]
    words = [sys.executable, *map(str, words)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    try:
        yield re.search(r"http://(127\.0\.0\.1:\d+)/", line).group(1), world / "out/votes"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(address: str, method: str, path: str, body: object = None, **headers: str) -> tuple:
    connection = http.client.HTTPConnection(address, timeout=20)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_server_gives_the_page_and_nothing_else(world, server):
    address, _ = server
    assert ask(address, "GET", "/?rater=x") == (200, (world / "out/index.html").read_bytes())
    for path in ("/key.json", "/index.html", "/votes", "/votes/", "//key.json", "/../key.json"):
        assert ask(address, "GET", path)[0] == 404, path
    for path in ("/%2e%2e/key.json", "/./", "/etc/passwd", "//", "key.json", "/?/../key.json#"):
        status, body = ask(address, "GET", path)
        assert b"secret" not in body and b"sample" not in body and b"root:" not in body
        assert status in (200, 404) and str(world).encode() not in body
    assert ask(address, "PUT", "/key.json", b"x")[0] == 501


def test_the_server_keeps_votes_of_two_at_once_and_refuses_others(world, server, tmp_path):
    address, kept = server
    sheets = {
        rater: read(write_votes(world, tmp_path, rater, [*RUNS, None])) for rater in ("ina", "jo")
    }
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(ask, address, "POST", "/votes", x) for x in 8 * list(sheets.values())]
        assert {job.result()[0] for job in jobs} == {204}
    for rater, sheet in sheets.items():
        assert read(kept / f"{rater}.json") == sheet
    before = sorted(path.name for path in kept.iterdir())
    stolen = {**sheets["ina"], "browser": "another", "answers": {}}
    assert ask(address, "POST", "/votes", stolen)[0] == 409
    for damage in (
        {"study": "other"},
        {"rater": "../../out"},
        {"rater": ""},
        {"rater": 3},
        {"answers": {"x": None}},
        {"answers": {next(iter(sheets["jo"]["answers"])): "x"}},
        {"answers": {next(iter(sheets["jo"]["answers"])): [1]}},
        {"answers": None},
    ):
        status, said = ask(address, "POST", "/votes", {**sheets["jo"], **damage})
        assert status == 400 and str(world).encode() not in said, damage
    assert ask(address, "POST", "/votes", b"{")[0] == 400
    assert ask(address, "POST", "/votes", b"[]")[0] == 400
    for length in ("99999999999", "9" * 9000, "-1", "many"):
        assert ask(address, "POST", "/votes", b"", **{"Content-Length": length})[0] == 413
    assert sorted(path.name for path in kept.iterdir()) == before
    assert read(kept / "ina.json") == sheets["ina"]


def test_the_page_posts_to_what_serves_it(world, server, browser_page):
    address, kept = server
    with browser_page() as page:
        start(page, f"http://{address}/", "kim")
        for _ in range(4):
            press(page, "2")
        page.locator("#state", has_text="arrived").wait_for(state="attached")
        assert {x.split("/")[2] for x in page.asked} == {address}
    assert len(read(kept / "kim.json")["answers"]) == 4
    with browser_page() as page:  # another browser: the name is taken, the answers are carried on
        page.goto(f"http://{address}/")
        page.fill("#rater", "kim")
        page.click("text=Start")
        page.wait_for_selector("#refused:not([hidden])")
        assert "another name" in page.inner_text("#refused")
        page.fill("#rater", "kim-2")
        page.click("text=Start")
        page.locator("#state", has_text="arrived").wait_for(state="attached")
    assert len(read(kept / "kim.json")["answers"]) == 4
    assert read(kept / "kim-2.json")["answers"] == {}


def test_a_page_from_a_file_posts_to_its_endpoint(world, server, tmp_path, browser_page):
    """`--endpoint`: the browser asks another host than that of the page."""
    address, kept = server
    text = (world / "out/index.html").read_text()
    assert text.count('"endpoint": ""') == 1
    for name, where in (("there", f"http://{address}/votes"), ("gone", "http://127.0.0.1:9/votes")):
        page_file = tmp_path / f"{name}.html"
        page_file.write_text(text.replace('"endpoint": ""', f'"endpoint": "{where}"'))
    with browser_page() as page:
        start(page, (tmp_path / "there.html").as_uri(), "lu")
        press(page, "0")
        page.locator("#state", has_text="arrived").wait_for(state="attached")
        assert list(read(kept / "lu.json")["answers"].values()) == [None]
        page.goto((tmp_path / "gone.html").as_uri() + "?rater=moe")
        page.wait_for_selector("#state.failed")
        press(page, "0")
        page.locator("#state.failed", has_text="kept here").wait_for()  # empty while it is sent
        page.reload()
        assert place(page) == "2 of 4"


def test_make_writes_the_endpoint(world, tmp_path):
    runs = [world / run for run in RUNS]
    more = ("--dataset-root", world / "data", "--out", tmp_path, "--endpoint", "https://a.b/votes")
    assert command("make", *runs, *more) == 0
    assert '"endpoint": "https://a.b/votes"' in (tmp_path / "index.html").read_text()


# --- the count
