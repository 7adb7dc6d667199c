"""What stage 2 is told is the same from either layout of the feature store."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_dataset import write_split
from torch.utils.data import default_collate

from egogen import layout
from egogen.actions import read_actions
from egogen.atomic import write_json
from egogen.check import main as check
from egogen.errors import EgoGenError
from egogen.features.projector import Projector, keep_projector
from egogen.features.store import INFO_FILE, FeatureWriter
from ldm.data import collate, project, read_features
from ldm.networks.architecture import build_conditioner
from ldm.released_config import released_features
from ldm.schema import ConditionerParams
from ldm.split import Located, check_stores

ROWS, VISION, WIDTH = 256, 6, 24
CONDITIONER = {"variant": "both", "feature_dim": WIDTH, "image_rows": ROWS, "text_rows": 77}
NAMES = ("image", "text")


def projector(seed: int) -> Projector:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(WIDTH, VISION, generator=generator) / VISION**0.5
    bias = torch.randn(WIDTH, generator=generator)
    return Projector({"linear_1.weight": weight, "linear_1.bias": bias}, "test")


def write_stores(root: Path, names: list[str], seed: int) -> None:
    """The same features in both layouts, under root/<layout>/<kind>."""
    generator = np.random.default_rng(seed)
    vision = {n: generator.standard_normal((ROWS, VISION)).astype(np.float16) for n in names}
    text = {n: generator.standard_normal((70 + 5 * k, WIDTH)) for k, n in enumerate(names)}
    made = projector(seed)
    pictures = {n: made(torch.from_numpy(v)).numpy() for n, v in vision.items()}
    for name, image_rows in (("released", pictures), ("compact", vision)):
        for kind, items in (("image", image_rows), ("text", text)):
            folder = root / name / kind
            info = {"kind": kind, "layout": name, "width": WIDTH}
            info |= {"rows": ROWS} if kind == "image" else {}
            if name == "compact":
                info |= {"vision_width": VISION} if kind == "image" else {"text_rows": 77}
            write_json(folder / INFO_FILE, info)
            writer = FeatureWriter(folder, kind, name, "1-of-1")
            writer.write(items)
            writer.close()
    keep_projector(root / "compact" / "image", made)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two datasets whose features were made by two models."""
    roots = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")]
    for seed, root in enumerate(roots):
        write_split(root, "ego4d", "val", clips=1, actions=3)
        entries = read_actions(layout.action_file(root, "ego4d", "val"))
        write_stores(root, [entry.image_0 for entry in entries], seed)
    return roots


def located(roots, name: str, text: str | None = None) -> list[Located]:
    return [
        Located(
            entry,
            "",
            {"image": str(root / name / "image"), "text": str(root / (text or name) / "text")},
        )
        for root in roots
        for entry in read_actions(layout.action_file(root, "ego4d", "val"))
    ]


def told(items, variant="both"):
    """Image and text rows as training's batches have them, and as generation's do."""
    features = table(variant=variant)
    check_stores(items, features)
    samples = [read_features(item, features) for item in items]
    batch = project(default_collate(samples), features)["features"]
    assert list(batch) == [name for name in NAMES if variant in (name, "both")]
    generated = [{"pixels": torch.zeros(3, 2, 2), "prompt": "", **sample} for sample in samples]
    other = collate(generated, features, torch.device("cpu"))["features"]
    assert batch.keys() == other.keys()
    assert all(torch.equal(batch[name], other[name]) for name in batch)
    return batch


@pytest.mark.parametrize("variant", ["none", "image", "text", "both"])
def test_both_layouts_tell_the_same(sets, variant):
    one, other = (told(located(sets, name), variant) for name in ("released", "compact"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == torch.float32 and value.shape[0] == 6
        # half precision after the projection, against before it; values up to 5
        torch.testing.assert_close(other[name], value, atol=4e-3, rtol=2e-3)


def test_the_context_is_the_same(sets):
    torch.manual_seed(0)
    params = ConditionerParams(table(), num_heads=2, num_layers=1, feedforward_dim=32)
    conditioner = build_conditioner(params, 16).eval()
    rows = []
    for name in ("released", "compact"):
        batch = told(located(sets, name))
        with torch.no_grad():
            rows.append(conditioner(batch))
    for one, other in zip(*(found.values() for found in rows), strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=2e-3)


def table(**changes):
    return released_features({**CONDITIONER, **changes})


@pytest.mark.parametrize("name", ["released", "compact"])
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"feature_dim": 5120}, ["width 24", "features.image.width=5120"]),
        ({"image_rows": 576}, ["rows 256", "features.image.rows=576"]),
    ],
)
def test_features_of_another_model_are_told_at_the_start(sets, name, changes, words):
    with pytest.raises(EgoGenError) as error:
        check_stores(located(sets, name), table(**changes))
    assert all(word in str(error.value) for word in [INFO_FILE, *words])


def test_a_compact_store_holds_77_text_rows(sets):
    check_stores(located(sets, "released"), table(text_rows=100))
    with pytest.raises(EgoGenError, match="first 77 text rows"):
        check_stores(located(sets, "compact"), table(text_rows=100))


def test_layouts_of_pictures_do_not_meet_in_a_batch(sets):
    mixed = located(sets[:1], "released") + located(sets[1:], "compact")
    with pytest.raises(EgoGenError, match="convert one"):
        check_stores(mixed, table())
    check_stores(located(sets, "compact", text="released"), table())  # text may be either


@pytest.mark.parametrize("name", ["released", "compact"])
def test_the_check_reads_both_layouts(sets, name, capsys):
    root = sets[0]
    write_json(layout.metadata_file(root, "ego4d"), {"ego4d-val-clip0": {"width": 9, "height": 9}})
    options = ["--dataset", "ego4d", "--split", "val", "--workers", "1"]
    for kind in ("image", "text"):
        options += [f"--{kind}-features", str(root / name / kind)]
    assert check([str(root), *options]) == 0
    assert "problems: none" in capsys.readouterr().out
    write_split(root, "ego4d", "val", clips=2, actions=3)  # more entries than features
    try:
        assert check([str(root), *options]) == 1
        out = capsys.readouterr().out
        assert out.count("no such feature" if name == "released" else "no feature of frame") == 6
    finally:
        write_split(root, "ego4d", "val", clips=1, actions=3)
