"""FID, LPIPS and CLIP from weight files, against the numbers of the released script.

The weights are filled by a recipe instead of downloaded, so nothing but the arithmetic is tested.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from golden_weights import DATA, state_dict
from safetensors.torch import save_file

from egogen.errors import EgoGenError
from metrics import all_metrics_in_one, clip_image, frechet, perceptual
from metrics.frame_pairs import find_pairs
from metrics.pictures import read_pair, read_unresized
from metrics.state_dicts import load_state_dict

FOLDER = {"ego4d": "ego4d.fho", "epickitchen": "epickitchen"}
NETWORKS = {
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("vgg16", "vgg16-397923af.pth"),
}


def golden(name: str):
    return json.loads((DATA / f"{name}.json").read_text())


def pairs_of(dataset: str):
    root = DATA / dataset
    truth = root / "EgoGen" / FOLDER[dataset] / "val_gt_for_metric"
    return find_pairs(root / "run/images", truth, root / f"{dataset}_val.json").pairs


def weight_file(folder: Path, kind: str) -> Path:
    manifest, name = NETWORKS[kind]
    torch.save(state_dict(manifest, r"features\."), folder / name)
    return folder / name


@pytest.mark.parametrize("kind", ["squeeze", "alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_lpips_as_released_and_as_defined(kind, tmp_path):
    network = perceptual.network(kind, weight_file(tmp_path, kind))
    for dataset in FOLDER:
        pairs = pairs_of(dataset)
        found = perceptual.distances(network, [read_pair(pair) for pair in pairs], "cpu")
        for place, variant in enumerate(("as_released", "scaled_to_minus1_1")):
            expected = golden("lpips")[dataset][variant][kind]["per_image"]
            for pair, values in zip(pairs, found, strict=True):
                assert values[place] == pytest.approx(expected[pair.key], rel=1e-4)


def test_frechet_distance_of_golden_features():
    arrays = np.load(DATA / "fid.npz")
    expected = golden("fid")
    for dataset in FOLDER:
        first, second = (
            arrays[f"{dataset}_{side}_pool"].astype(np.float64) for side in ("gt", "gen")
        )
        assert frechet.frechet_distance(first, second) == pytest.approx(
            expected[dataset]["exact"]["fid"], rel=1e-6
        )


def test_frechet_distance_of_full_rank_features():
    first = recipe.array("fid.a", (300, 64)).astype(np.float64)
    second = 1.3 * recipe.array("fid.b", (200, 64)).astype(np.float64) + 0.25
    second = second @ recipe.tensor("fid.mix", (64, 64)).astype(np.float64)
    value = frechet.frechet_distance(first, second)
    assert value == pytest.approx(golden("fid")["distance_only"]["value"], rel=1e-9)
    # In either direction, in any order of the pictures.
    assert frechet.frechet_distance(second[::-1], first) == pytest.approx(value, rel=1e-9)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    path = folder / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state_dict("inception"), path)
    return path


def test_fid_through_the_command_line(inception_file, tmp_path, capsys):
    root = DATA / "epickitchen"
    code = all_metrics_in_one.main(
        [
            "--dataset=epickitchen",
            f"--gen_path={root / 'run/images'}",
            f"--gt_path={root / 'EgoGen/epickitchen/val_gt_for_metric'}",
            f"--edit_file={root / 'epickitchen_val.json'}",
            f"--weights={inception_file.parent}",
            "--metrics=fid",
            f"--out={tmp_path}",
        ]
    )
    figures = json.loads((tmp_path / "metric.json").read_text())
    assert code == 0
    assert figures["fid"] == pytest.approx(golden("fid")["epickitchen"]["exact"]["fid"], rel=1e-4)
    assert "biased upwards" in capsys.readouterr().err


def test_inception_pool_features(inception_file):
    network = frechet.inception(inception_file)
    generated, target = read_unresized(pairs_of("ego4d")[0])
    found = frechet.pool_features(network, [generated, target])
    arrays = np.load(DATA / "fid.npz")
    for row, side in zip(found, ("gen", "gt"), strict=True):
        np.testing.assert_allclose(row, arrays[f"ego4d_{side}_pool"][0], atol=1e-3)


@pytest.mark.slow
def test_clip_as_released(tmp_path):
    path = tmp_path / "ViT-L-14.pt"
    torch.save(state_dict("clip_vit_l14_visual"), path)
    tower = clip_image.image_tower(path)
    for dataset in FOLDER:
        pairs = pairs_of(dataset)
        for pair in pairs[:2]:
            first, second = clip_image.embeddings(tower, read_unresized(pair))
            expected = golden("clip")[dataset]["per_image"][pair.key]
            assert float(first @ second) == pytest.approx(expected, abs=1e-4)


def test_weight_files_of_every_kind_and_none_runs_code(tmp_path):
    state = {"a.weight": torch.arange(3.0), "n": torch.tensor(2)}
    wrapped = {f"module.{name}": value.clone() for name, value in state.items()}
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pth")
    save_file(wrapped, tmp_path / "safe.safetensors")
    module = torch.nn.Module()
    module.register_buffer("n", state["n"])
    module.a = torch.nn.Module()
    module.a.weight = torch.nn.Parameter(state["a.weight"].half())
    torch.jit.save(torch.jit.script(module), tmp_path / "script.pt")
    for name in ("plain.pth", "wrapped.pth", "safe.safetensors", "script.pt"):
        found = load_state_dict(tmp_path / name)
        assert found.keys() == state.keys(), name
        assert found["a.weight"].dtype == torch.float32
        assert torch.equal(found["a.weight"], state["a.weight"])

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "plain.pth").read_bytes()[:200])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    for name in ("evil.pth", "cut.pth", "text.pth", "list.pth", "empty.pth", "none.pth"):
        with pytest.raises(EgoGenError, match=name):
            load_state_dict(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(state_dict("alexnet", r"features\."), path)
    for build in (lambda: perceptual.network("vgg", path), lambda: frechet.inception(path)):
        with pytest.raises(EgoGenError, match="vgg16-397923af.pth"):
            build()
