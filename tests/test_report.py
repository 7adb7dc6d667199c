"""report.html: complete, self-contained, escaped, not blank in a real browser."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from browser import screenshot
from PIL import Image
from small_dataset import write_dataset

from egogen import layout
from egogen.actions import read_actions
from egogen.errors import EgoGenError, run_command
from metrics import all_metrics_in_one, report
from metrics.reporting.data import ReportData, Sample, read_curve, select
from metrics.reporting.html import page
from metrics.reporting.plots import smooth
from metrics.results import read_table

EVIL = '<script>document.body.innerHTML=""</script> "quoted" & \N{SNOWMAN} ' + "long" * 60


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A dataset with four generated frames: one perfect blend away from the target each."""
    folder = tmp_path_factory.mktemp("report")
    root = write_dataset(folder / "data", splits=("val",))
    frames = layout.frame_folder(root, "ego4d", "val")
    edit_file = layout.action_file(root, "ego4d", "val")
    content = json.loads(edit_file.read_text())
    content["ego4d-val-clip0"]["0"]["action"] = EVIL
    content["ego4d-val-clip0"]["1"]["llava_forecast_finetune"] = EVIL
    edit_file.write_text(json.dumps(content))
    for share, entry in zip((0.9, 0.1, 0.6, 0.3), read_actions(edit_file), strict=True):
        source, target = (Image.open(frames / name) for name in (entry.image_0, entry.image_1))
        path = folder / "run/images" / entry.image_1
        path.parent.mkdir(parents=True)
        Image.blend(source, target, share).save(path)
    all_metrics_in_one.main(
        [
            "--dataset=ego4d",
            f"--gen_path={folder}/run/images",
            f"--gt_path={layout.frame_folder(root, 'ego4d', 'val_gt_for_metric')}",
            f"--edit_file={edit_file}",
            "--metrics=psnr,psnr_changed",
        ]
    )
    rows = [
        {"clip": "ego4d-val-clip0", "action_id": "0", "done": True, "why_not": None},
        {"clip": "ego4d-val-clip0", "action_id": "1", "done": False, "why_not": "<b>gone</b>"},
    ]
    verbs = {"<i>cut</i>": {"count": 2, "done_rate": 0.5}}
    score = {"done_rate": 0.75, "other_action_rate": 0.125, "by_verb": verbs, "rows": rows}
    (folder / "score.json").write_text(json.dumps(score))
    history = [{"step": step, "loss": 2.0 / (1 + step)} for step in range(50)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    lines = [json.dumps({"step": s, "loss": 1 / (1 + s), "val_loss": 0.5}) for s in range(20)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 20, "lo']))
    return folder


def arguments(folder, *more):
    return [
        "--dataset=ego4d",
        f"--dataset-root={folder / 'data'}",
        f"--gen_path={folder / 'run/images'}/",
        f"--score={folder / 'score.json'}",
        f"--stage1-log={folder / 'trainer_state.json'}",
        f"--stage2-log={folder / 'metrics.jsonl'}",
        *more,
    ]


@pytest.fixture(scope="module")
def written(measured):
    assert report.main(arguments(measured)) == 0
    return measured / "run" / "report"


def test_the_page_is_self_contained_and_escaped(written):
    page = (written / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "<script>document" not in page  # its own alone
    assert "<b>gone" not in page and "<i>cut" not in page
    assert "&lt;script&gt;" in page and "\N{SNOWMAN}" in page
    sources = re.findall(r'\bsrc="([^"]{0,40})', page)
    assert len(sources) == 12 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert not re.search(r'\bhref="(?!#)', page.split("</style>")[1].replace("xlink:", ""))
    assert "url(http" not in page and "@import" not in page
    for picture in re.findall(r'src="data:image/jpeg;base64,([^"]+)', page):
        Image.open(io.BytesIO(base64.b64decode(picture))).load()


def test_best_and_worst_come_first_with_their_figures(written, measured):
    page = (written / "report.html").read_text(encoding="utf-8")
    keys = re.findall(r'class="key">([^<]+)', page)
    assert keys == [f"ego4d-val-{name}" for name in ("clip0/0", "clip1/0", "clip0/1", "clip1/1")]
    assert page.index('id="best"') < page.index(keys[1]) < page.index('id="worst"')
    figures = json.loads((measured / "run/metric/metric.json").read_text())
    assert f"{figures['psnr']:.2f} dB" in page and f"{figures['psnr_changed_gain']:+.2f}" in page
    assert "75.0<small>%" in page.replace(" ", "") and "action done" in page and "not done" in page
    assert page.count('class="drawing"') == 5  # two training curves, the spread of three figures


def test_intervals_and_every_frame_are_there(written, measured):
    page = (written / "report.html").read_text(encoding="utf-8")
    figures = json.loads((measured / "run/metric/metric.json").read_text())
    for name in ("psnr", "psnr_pooled", "psnr_changed"):
        low, high = figures[f"{name}_ci95"]
        assert low <= figures[name] <= high
        assert f"{low:.2f} to {high:.2f}" in page
    table = page[page.index('id="frames"') :]
    samples = read_table(measured / "run/metric/per_sample.csv")[0]
    best = max(samples, key=lambda frame: samples[frame]["psnr_changed_gain"])
    rows = table.split("<tr>")[2:]
    assert len(rows) == 4 and best.rpartition("/")[0] in rows[0]
    for row in rows:
        frame = next(name for name in samples if name.rpartition("/")[0] in row)
        assert f">{samples[frame]['psnr']:.2f}</td>" in row


def other_run(measured, folder):
    """The run with one frame made worse and one better, measured in `folder`."""
    shutil.copytree(measured / "run/images", folder / "run/images")
    for number, frame in enumerate(sorted((folder / "run/images").rglob("*.jpg"))[:2]):
        target = Image.open(
            measured / "data/EgoGen/ego4d.fho/val" / frame.relative_to(folder / "run/images")
        )
        # The first one far from its truth, the second one near.
        Image.blend(target, Image.new("RGB", target.size), (0.9, 0.1)[number]).save(frame)
    root = measured / "data"
    all_metrics_in_one.main(
        [
            "--dataset=ego4d",
            f"--gen_path={folder}/run/images",
            f"--gt_path={layout.frame_folder(root, 'ego4d', 'val_gt_for_metric')}",
            f"--edit_file={layout.action_file(root, 'ego4d', 'val')}",
            "--metrics=psnr,psnr_changed",
        ]
    )
    return folder / "run"


def test_the_headline_holds_eight_figures_and_first_the_action():
    keys = ("psnr", "psnr_changed_gain", "psnr_changed", "fid", "lpips_alex", "clip_image_sim")
    keys += ("egovlp_image_sim", "egovlp_plus_image_sim", "blip_large_egovlp_sim", "lpips_vgg")
    data = ReportData("", "", [], "", dict.fromkeys(keys, 0.5))
    order = ["Gain over copying", "FID", "PSNR", "LPIPS AlexNet", "CLIP", "EgoVLP", "EgoVLP+"]
    order += ["BLIP-L"]

    def names() -> list[str]:
        text = page(data, {"best": [], "worst": [], "others": []})
        return re.findall("<span>([^<]+)</span>", text[: text.index("<h2>Figures")])

    assert names() == order
    data.score = {"by_verb": {"cut": 0.5}}  # another tool's: no rows of verbs
    page(data, {"best": [], "worst": [], "others": []})
    data.score = {"done_rate": 0.25, "by_verb": [1]}  # no table of verbs
    data.descriptions = {"hand": 0.125, "all": None, "count": 4}
    assert names() == ["Action done", "Descriptions right", *order[:6]]
    text = page(data, {"best": [], "worst": [], "others": []})
    assert "by verb" not in text and "object, hand and target, of 4" in text
    shares = text[text.index("Descriptions that state it right") :]
    assert re.findall("<th>(.+?)</th>", shares)[:2] == ["hand", "all"]
    assert re.findall('"number">(.+?)</td>', shares)[:2] == ["12.5 %", "\N{EN DASH}"]
    assert "width:12%" in shares


def test_the_other_run_and_what_gained_are_shown(written, measured, tmp_path):
    other = other_run(measured, tmp_path)
    more = [f"--against={other}", f"--against-images={other}/images", f"--out={tmp_path / 'out'}"]
    assert report.main(arguments(measured, *more)) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    before = json.loads((other / "metric/metric.json").read_text())["psnr"]
    after = json.loads((measured / "run/metric/metric.json").read_text())["psnr"]
    versus = page[page.index('id="versus"') : page.index('id="gained"')]
    for text in (f"{before:.2f}</td>", f"{after:.2f}</td>", f"{after - before:+.2f}</td>"):
        assert text in versus
    samples = [read_table(run / "metric/per_sample.csv")[0] for run in (other, measured / "run")]
    changes = {
        frame.rpartition("/")[0]: samples[1][frame][key] - samples[0][frame][key]
        for frame in samples[0]
        for key in ["psnr_changed_gain"]
    }
    gained = page[page.index('id="gained"') : page.index('id="lost"')]
    lost = page[page.index('id="lost"') : page.index('id="best"')]
    for section, sign in ((gained, 1), (lost, -1)):
        shown = re.findall(r'class="key">([^<]+)', section)
        expected = [key for key, change in changes.items() if sign * change > 0]
        assert shown == sorted(expected, key=lambda key: -sign * changes[key]) != []
        assert section.count('alt="A: ') == len(shown)
    # The frames of three figures; the page of one run has nothing of it.
    assert versus.count('class="drawing"') == 3
    plain = (written / "report.html").read_text(encoding="utf-8")
    assert 'id="versus"' not in plain and 'id="gained"' not in plain


def test_frames_are_ranked_by_the_figure_that_is_asked_for(measured, tmp_path):
    shutil.copytree(measured / "run/metric", tmp_path / "metric")
    table = (tmp_path / "metric/per_sample.csv").read_text().splitlines()
    distances = (0.3, 0.1, 0.2, 0.4)  # of the frames in the CSV's order; lower is better
    rows = [f"{row},{value}" for row, value in zip(table[1:], distances, strict=True)]
    lines = "\n".join([table[0] + ",lpips_alex", *rows])
    (tmp_path / "metric/per_sample.csv").write_text(lines)
    (tmp_path / "metric/blip.json").write_text(
        json.dumps({"ego4d-val-clip1": {"0": " a cup on <i>a</i> table"}})
    )
    more = [f"--metric={tmp_path / 'metric'}", "--rank-by=lpips_alex", f"--out={tmp_path / 'out'}"]
    report.main(arguments(measured, *more))
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    keys = re.findall(r'class="key">([^<]+)', page)
    names = ["clip0/1", "clip1/0", "clip1/1", "clip0/0"]
    assert keys == [f"ego4d-val-{name}" for name in names]
    assert page.count("sees: a cup on &lt;i&gt;a&lt;/i&gt; table") == 1


def test_a_second_run_writes_the_same_bytes(written, measured):
    before = (written / "report.html").read_bytes()
    report.main(arguments(measured))
    assert (written / "report.html").read_bytes() == before
    assert [path.name for path in written.iterdir()] == ["report.html"]


@pytest.mark.parametrize("width", [1360, 520])
def test_a_browser_shows_it(written, tmp_path, width):
    light = np.asarray(screenshot(written / "report.html", tmp_path, width, 2400), np.float64)
    assert light.shape[1] == width
    assert light.std() > 10 and light.mean() > 150
    # The accent frame around generated pictures is there: styles and pictures were drawn.
    accent = np.abs(light - np.array([194, 71, 10])).sum(axis=2) < 12
    assert accent.sum() > 500
    # Nothing is wider than the window: the right margin is plain paper from top to bottom.
    assert (light[:, -8:] == light[0, -1]).all()


def test_dark_mode_is_dark(written, tmp_path):
    flag = "--blink-settings=preferredColorScheme=0"
    dark = np.asarray(screenshot(written / "report.html", tmp_path, 1000, 1200, flag), np.float64)
    assert dark[:, :8].mean() < 60 and dark.std() > 10


def test_selection_takes_each_sample_once():
    samples = [Sample(str(n), "", "", None, None, None, {}) for n in range(10)]
    keys = {
        kind: [int(sample.key) for sample in chosen]
        for kind, chosen in select(samples, 2, 3, 2).items()
    }
    assert keys == {"best": [0, 1], "worst": [9, 8, 7], "others": [3, 5]}
    few = select(samples[:3], 4, 4, 4)
    assert [len(few[kind]) for kind in ("best", "worst", "others")] == [2, 1, 0]
    only = select(samples, 0, 0, 3)
    assert [sample.key for sample in only["others"]] == ["1", "5", "8"]


def test_curves_keep_the_mean_of_what_they_smooth():
    values = np.random.default_rng(0).normal(size=400)
    assert smooth(np.ones(400)) == pytest.approx(1)
    assert smooth(values).std() < 0.4 * values.std()
    assert smooth(values[:5]) == pytest.approx(values[:5])


def test_bad_input_is_one_line(measured, tmp_path, capsys):
    good = arguments(measured)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "texts.json").write_text('{"object": "0.5"}')
    shutil.copytree(measured / "run/metric", tmp_path / "listed")
    (tmp_path / "listed/blip.json").write_text("[]")
    (tmp_path / "none.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"step"\n{"step": 1, "loss": 2}\n')
    shutil.copytree(measured / "run/metric", tmp_path / "metric")
    (tmp_path / "metric/per_sample.csv").write_text("clip,action,frame,psnr\na,b,c,high\n")
    cases = [
        ([f"--metric={tmp_path / 'no'}"], "measure first: python metrics/all_metrics_in_one.py"),
        ([f"--metric={tmp_path / 'metric'}"], "not a table of per-sample figures"),
        ([f"--metric={tmp_path / 'listed'}"], "blip.json: expected an object"),
        ([f"--score={tmp_path / 'list.json'}"], "expected an object of scores"),
        ([f"--description-score={tmp_path / 'texts.json'}"], "field 'object': expected a number"),
        ([f"--stage1-log={tmp_path / 'list.json'}"], "log_history"),
        ([f"--stage2-log={tmp_path / 'none.jsonl'}"], "holds no losses"),
        ([f"--stage2-log={tmp_path / 'broken.jsonl'}"], "line 1: not valid JSON"),
        (["--rank-by=fid"], "--rank-by fid: no such figure"),
        ([f"--against={tmp_path / 'no'}"], "no such folder"),
        ([f"--against={tmp_path / 'empty'}"], "measure first"),
        ([f"--against-images={tmp_path}"], "expected --against"),
        (["--best=0", "--worst=0", "--others=0"], "not all 0"),
    ]
    for more, expected in cases:
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as stopped:
            run_command(report.main, [*good, *more, f"--out={out}"])
        error = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and "\n" not in error and expected in error, error
        assert not out.exists()


def test_a_frame_that_went_missing_is_named(measured, tmp_path):
    shutil.copytree(measured, tmp_path / "copy")
    frame = next((tmp_path / "copy/run/images").rglob("*.jpg"))
    frame.unlink()
    with pytest.raises(EgoGenError, match=frame.name):
        report.main(arguments(tmp_path / "copy"))
    assert read_curve(measured / "metrics.jsonl", "x").lines["training"][-1] == (19, 0.05)
