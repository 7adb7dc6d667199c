"""Exact values of what is own in the figures: regions, intervals, words of a report."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egogen.actions import ActionEntry
from metrics import intervals
from metrics.evaluate import identity_of
from metrics.frame_pairs import Pair, Population, find_pairs, same_aspect
from metrics.intervals import Comparison, around, clip_numbers, percentiles, sign_flip_p
from metrics.measures.frechet import frechet_distance
from metrics.measures.psnr import changed_mask, changed_region_scores
from metrics.registry import KEYS, METRICS, Settings, finite_mean
from metrics.reporting.data import ReportData, Sample, gained_and_lost, rank
from metrics.reporting.figures import interval_text, number
from metrics.reporting.plots import p_text, smooth

DATA = Path(__file__).parent / "data" / "metrics"


@pytest.mark.parametrize(
    "value, size",
    [(144, 0), (153, 7), (255, 7)],  # over 9 pixels of the blur: 16, 17 and 28 grey levels
)
def test_the_changed_region_of_one_pixel(value, size):
    """Three pixels wide by the blur, and two more at each side."""
    before = Image.new("RGB", (31, 21))
    after = before.copy()
    after.putpixel((15, 10), (0, value, 0))
    rows, columns = np.nonzero(changed_mask(before, after))
    assert len(rows) == size**2
    if size:
        assert (rows.min(), rows.max()) == (10 - 3, 10 + 3)
        assert (columns.min(), columns.max()) == (15 - 3, 15 + 3)
        scores = changed_region_scores(before, before, after)
        error = value**2 / 255**2 / (3 * 49)
        assert scores.generated == scores.copied == pytest.approx(-10 * math.log10(error))
        assert changed_region_scores(before, after, after) == (100.0, scores.copied)


def test_what_should_have_been_kept():
    """Left of a change of three columns, a frame is compared with the source, by hand."""
    before = Image.new("RGB", (40, 20), (100, 100, 100))
    after, film = before.copy(), 4  # grey levels that an unchanged place of a film varies by
    after.paste((200, 100, 100), (30, 0, 40, 20))
    after.paste((100 + film,) * 3, (0, 0, 10, 20))
    kept = 30 - 3  # columns: the change is grown by the blur's pixel and by two more
    of_film = -10 * math.log10((film / 255) ** 2 * 10 / kept)

    def scores(frame):
        changed = changed_region_scores(before, frame, after)
        return changed, changed_region_scores(before, frame, after, kept=True)

    assert scores(before)[1] == pytest.approx((100.0, of_film))  # copying is best
    true, found = scores(after)
    assert true.generated == 100 and found == pytest.approx((of_film, of_film))
    repainted = after.copy()
    repainted.paste((150, 90, 100), (0, 0, 10, 20))
    there, found = scores(repainted)
    error = (50**2 + 10**2) / 3 / 255**2 * 10 / kept
    assert there == true, "the action itself is as good"
    assert found.generated == pytest.approx(-10 * math.log10(error)) and found.gain < -15
    assert changed_region_scores(before, after, before, kept=True).copied == 100  # nothing changes
    white = Image.new("RGB", before.size, "white")
    assert changed_region_scores(before, after, white, kept=True) is None


def test_intervals_are_exact():
    values = np.arange(101.0)
    assert percentiles(values) == pytest.approx([2.5, 97.5])
    assert around(5.0, [1.0, 3.0]) == pytest.approx(
        [5 - 1.959963984540054 * math.sqrt(2), 5 + 1.959963984540054 * math.sqrt(2)]
    )
    assert around(5.0, [1.0]) is None and percentiles(np.empty(0)) is None


def test_parts_of_the_clips_are_scaled_up():
    """Four of five clips: deviations of the parts times sqrt(4 / 1)."""
    draw = np.random.RandomState(0).standard_normal
    generated, target, clips = draw((20, 3)), draw((20, 3)), np.arange(20) // 4
    found = np.array(intervals.resampled_fid(generated, target, clips))
    parts = []
    for left_out in range(5):
        used = clips != left_out
        parts.append(frechet_distance(target[used], generated[used]))
    middle = found.mean()  # the scaling keeps it, and each draw leaves one clip out
    unscaled = middle + (found - middle) / 2
    gaps = np.abs(unscaled[:, None] - np.array(parts)).min(axis=1)
    assert gaps.max() < 1e-9 and len(found) == intervals.FID_DRAWS


def test_frames_of_a_clip_go_together():
    assert clip_numbers(["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]
    differences = np.array([1.0, 1.0, 1.0, 1.0])
    assert sign_flip_p(differences, np.array([0, 0, 1, 1])) == 0.5  # of 4 signs, 2 are as large
    assert sign_flip_p(differences, np.arange(4)) == 0.125


def test_the_better_run_by_the_direction_of_the_figure():
    def better(key, difference, interval):
        return Comparison(key, 0, 0, difference, interval, 0.01, "", 9).better(KEYS[key])

    assert better("psnr", 2.0, [1.0, 3.0]) == "B" and better("psnr", -2.0, [-3.0, -1.0]) == "A"
    assert better("lpips_alex", 2.0, [1.0, 3.0]) == "A"
    assert better("lpips_alex", -2.0, [-3.0, -1.0]) == "B"
    assert better("psnr", 2.0, [-1.0, 3.0]) == better("psnr", 2.0, None) == ""


def test_means_leave_out_what_is_not_finite():
    assert finite_mean([1.0, math.inf, math.nan, 3.0]) == 2.0
    assert finite_mean([math.inf, -math.inf, math.nan]) is None
    assert finite_mean([1e16, 1.0, -1e16]) == 1 / 3


def test_figures_in_words():
    minus = "\N{MINUS SIGN}"
    assert number("psnr", 21.456) == "21.46 dB" and number("psnr", -1.0) == f"{minus}1.00 dB"
    assert number("psnr_changed_gain", 1.0) == "+1.00 dB"
    assert number("lpips_alex", 0.12345) == "0.1235" and number("samples", 12) == "12"
    assert number("psnr", math.inf) == "equal"
    assert number("psnr", -math.inf) == number("psnr", math.nan) == number("psnr", None)
    assert interval_text("lpips_alex", [0.1, 0.25]) == "0.1000 to 0.2500"
    assert [p_text(p) for p in (None, 0.05, 0.00012, 1e-4, 0.00009)] == [
        "-",
        "0.0500",
        "0.0001",
        "0.0001",
        "<0.0001",
    ]


def test_running_means_do_not_fall_at_the_ends():
    values = np.linspace(1, 2, 200)
    found = smooth(values)  # over 2 * 5 + 1 values
    assert found[100] == pytest.approx(values[95:106].mean())
    assert found[0] == pytest.approx(values[:6].mean())
    assert found[-1] == pytest.approx(values[-6:].mean())


def sample(name: str, **figures) -> Sample:
    return Sample(name, "", "", None, None, None, figures, frame=name)


def test_samples_are_ranked_by_the_direction_of_their_figure():
    low, high, none = sample("low", lpips_alex=0.1), sample("high", lpips_alex=0.4), sample("none")
    ordered = sorted([none, high, low], key=lambda one: -rank(one, "lpips_alex"))
    assert [one.key for one in ordered] == ["low", "high", "none"]
    assert rank(sample("a", psnr=3.0), "psnr") > rank(sample("b", psnr=2.0), "psnr")


@pytest.mark.parametrize("key, sign", [("psnr", 1), ("lpips_alex", -1)])
def test_largest_gains_and_losses_come_first(key, sign):
    changes = {"a": 1.0, "b": 3.0, "c": -2.0, "d": -5.0, "e": 0.0, "f": 2.0, "g": -1.0}
    before = {name: {key: 10.0} for name in changes}
    after = [sample(name, **{key: 10.0 + sign * change}) for name, change in changes.items()]
    data = ReportData("", "", after, key, {})
    data.versus = type("Versus", (), {"first": type("Run", (), {"samples": before})})
    gained, lost = gained_and_lost(data, 2)
    assert [(one.key, change) for one, change in gained] == [("b", 3 * sign), ("f", 2 * sign)]
    assert [(one.key, change) for one, change in lost] == [("d", -5 * sign), ("c", -2 * sign)]


def test_what_a_metric_is_computed_from(tmp_path):
    """Frames, dataset and weights of all; sources and texts of those that look at them."""
    entries = [
        ActionEntry("c", str(k), f"c/{k}/0.jpg", f"c/{k}/1.jpg", {"one": f"a{k}", "two": "b"})
        for k in range(2)
    ]
    pairs = [Pair(entry, tmp_path, tmp_path, None) for entry in entries]
    known: dict = {"identity": "frames", "source_identity": "sources", "dataset": "ego4d"}
    known |= {"key": "one", "weights": b"weights"}

    def of(name: str, **changed) -> str:
        now = known | changed
        (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(now["weights"])
        (tmp_path / "egovlp.pth").write_bytes(now["weights"])
        population = Population(pairs, [], [], now["identity"], now["source_identity"])
        settings = Settings(now["dataset"], weights=tmp_path, llava_key=now["key"])
        return json.dumps(identity_of(METRICS[name], population, settings))

    changes = {"identity": "x", "source_identity": "x", "dataset": "epickitchen", "key": "two"}
    changes |= {"weights": b"other weights"}
    always = {"identity", "dataset"}
    for name, more in (
        ("psnr", set()),
        ("psnr_changed", {"source_identity"}),
        ("psnr_kept", {"source_identity"}),
        ("lpips_alex", {"weights"}),
        ("egovlp_plus", {"weights", "source_identity"}),
        ("blip_base", {"weights", "key"}),
    ):
        counts = {key for key, value in changes.items() if of(name, **{key: value}) != of(name)}
        assert counts == always | more, name


@pytest.mark.parametrize(
    "first, second, fits",
    [
        ((100, 50), (200, 100), True),
        ((102, 50), (200, 100), True),  # within 2 %
        ((103, 50), (200, 100), False),
        ((97, 50), (200, 100), False),
        ((11, 5), (20, 10), True),  # within two pixels
        ((12, 5), (20, 10), False),
        ((50, 100), (200, 100), False),
    ],
)
def test_aspects_that_agree(first, second, fits):
    assert same_aspect(first, second) is fits


@pytest.mark.parametrize("which", ["generated", "target", "source"])
def test_a_frame_that_changes_is_measured_again(tmp_path, which):
    """Its content counts, not its name; sources count where they are looked at."""
    shutil.copytree(DATA / "ego4d", tmp_path / "ego4d")
    root = tmp_path / "ego4d"
    places = root / "run/images", root / "EgoGen/ego4d.fho/val_gt_for_metric"

    def identities():
        found = find_pairs(*places, root / "ego4d_val.json")
        assert not found.problems
        return found.pairs[-1], found.identity, found.source_identity

    pair, frames, sources = identities()
    assert identities()[1:] == (frames, sources)
    path = getattr(pair, which)
    picture = Image.open(path).convert("RGB").point(lambda value: 255 - value)
    picture.save(path)
    _, frames_now, sources_now = identities()
    assert (frames_now != frames) == (which != "source")
    assert (sources_now != sources) == (which == "source")
