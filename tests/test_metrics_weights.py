"""FID, LPIPS and CLIP from weight files, against the numbers of the released script.

The weights are filled by a recipe instead of downloaded, so nothing but the arithmetic is tested.
"""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from golden_weights import DATA, state_dict
from offline import offline  # noqa: F401 (no hidden downloads)
from safetensors.torch import save_file

from egogen.errors import EgoGenError
from metrics import all_metrics_in_one
from metrics.frame_pairs import find_pairs
from metrics.images import read_pair, read_unresized, squeezed
from metrics.loading import load_state_dict
from metrics.measures import captions, clip_image, egovlp, frechet, perceptual

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


def check_lpips(kind: str, path: Path, datasets, count: int | None) -> None:
    """Both ranges, the first `count` pairs; the layers' shares of the first one."""
    network = perceptual.network(kind, path)
    for dataset in datasets:
        pairs = pairs_of(dataset)[:count]
        pictures = [read_pair(pair) for pair in pairs]
        found = perceptual.distances(network, pictures, "cpu")
        for place, variant in enumerate(("as_released", "scaled_to_minus1_1")):
            expected = golden("lpips")[dataset][variant][kind]["per_image"]
            for pair, values in zip(pairs, found, strict=True):
                assert values[place] == pytest.approx(expected[pair.key], rel=1e-4)
        with torch.inference_mode():
            first, second = (picture[None] for picture in pictures[0])
            _, layers = network(first, second, retperlayer=True)
        shares = golden("lpips")[dataset]["as_released_per_layer_first_image"][kind]
        assert [float(layer) for layer in layers] == pytest.approx(shares, rel=1e-4)


@pytest.mark.parametrize("kind", ["squeeze", "alex"])
def test_lpips_as_released_and_as_defined(kind, tmp_path):
    check_lpips(kind, weight_file(tmp_path, kind), FOLDER, None)


def test_lpips_vgg_of_one_pair(tmp_path):
    check_lpips("vgg", weight_file(tmp_path, "vgg"), ["ego4d"], 1)


@pytest.mark.slow("metrics of all golden pairs")
@pytest.mark.timeout(7200)  # on a busy machine
def test_lpips_vgg_of_all_pairs(tmp_path):
    check_lpips("vgg", weight_file(tmp_path, "vgg"), FOLDER, None)


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


@torch.inference_mode()
def test_inception_layer_by_layer(inception_file):
    network = frechet.inception(inception_file)
    generated, target = read_unresized(pairs_of("ego4d")[0])
    arrays = np.load(DATA / "fid.npz")
    found = frechet.pool_features(network, [generated, target])
    for row, side in zip(found, ("gen", "gt"), strict=True):
        np.testing.assert_allclose(row, arrays[f"ego4d_{side}_pool"][0], atol=1e-3)
    block = 2 * squeezed([target], 299, "bilinear", "cpu") - 1
    np.testing.assert_allclose(
        block[0, :, ::13, ::13].numpy(), arrays["first_input_299_stride13"].squeeze(), atol=1e-5
    )
    for number in range(3):
        block = network.blocks[number](block)
        expected = arrays[f"first_block{number}_stride"].squeeze()
        np.testing.assert_allclose(block[0, ::16, ::9, ::9].numpy(), expected, atol=1e-3)


def check_clip(dataset: str, count: int, tower) -> None:
    pairs = pairs_of(dataset)[:count]
    arrays = np.load(DATA / "clip.npz")
    for number, pair in enumerate(pairs):
        found = clip_image.embeddings(tower, read_unresized(pair))
        for row, side in zip(found, ("gen", "gt"), strict=True):
            expected = arrays[f"{dataset}_{side}_features"][number]
            np.testing.assert_allclose(row.numpy(), expected, atol=1e-4)
        expected = golden("clip")[dataset]["per_image"][pair.key]
        assert float(found[0] @ found[1]) == pytest.approx(expected, abs=1e-4)


def test_clip_as_released():
    _, target = read_unresized(pairs_of("ego4d")[0])
    inputs = clip_image.image_inputs([target], "cpu")
    expected = np.load(DATA / "clip.npz")["first_input_224_stride7"].squeeze()
    np.testing.assert_allclose(inputs[0, :, ::7, ::7].numpy(), expected, atol=1e-5)
    tower = clip_image.image_tower(state_dict("clip_vit_l14_visual"), "ViT-L-14.pt")
    check_clip("ego4d", 1, tower)


@pytest.mark.slow("metrics of all golden pairs")
@pytest.mark.timeout(7200)  # on a busy machine
def test_clip_of_all_pairs():
    tower = clip_image.image_tower(state_dict("clip_vit_l14_visual"), "ViT-L-14.pt")
    for dataset in FOLDER:
        check_clip(dataset, 6, tower)


def test_weight_files_of_every_kind(tmp_path):
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

    (tmp_path / "cut.pth").write_bytes((tmp_path / "plain.pth").read_bytes()[:200])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    for name in ("cut.pth", "text.pth", "list.pth", "empty.pth", "none.pth"):
        with pytest.raises(EgoGenError, match=name):
            load_state_dict(tmp_path / name)


class Call:
    """Pickled as a call of `function`, which unpickling would do."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before 2020"])
def test_what_a_pickle_refers_to_is_never_run(archive, tmp_path, monkeypatch):
    module = types.ModuleType("author_config")

    class Config(dict):
        def __setstate__(self, state):
            (tmp_path / "ran").touch()

    Config.__module__, Config.__qualname__ = "author_config", "Config"
    module.Config = Config
    config = Config(frames=4)
    config.folder = Path("/results")
    monkeypatch.setitem(sys.modules, "author_config", module)
    weights = {"module.a.weight": torch.arange(3.0).half()}
    ran = tmp_path / "ran"
    extra = {
        "harmless": config,
        "file": Call(open, str(ran), "w"),
        "code": Call(eval, f"open({str(ran)!r}, 'w')"),
        "method": Call(Path.touch, ran),
        "system": Call(os.system, f"touch {ran}"),
        "process": Call(subprocess.check_output, ["touch", str(ran)]),
    }
    refused = {
        "method": "not to be read without executing",
        "system": r"refers to posix\.system",
        "process": r"refers to subprocess\.check_output",
    }
    for name, thing in extra.items():
        path = tmp_path / f"{name}.pth"
        content = {"state_dict": weights, "config": thing}
        torch.save(content, path, _use_new_zipfile_serialization=archive)
        if name in refused:
            with pytest.raises(EgoGenError, match=f"{name}.pth: .*{refused[name]}"):
                load_state_dict(path)
        else:
            state = load_state_dict(path)
            assert state.keys() == {"a.weight"}
            assert torch.equal(state["a.weight"], torch.arange(3.0))
        # Where a tensor should be, it is not one.
        torch.save({"a.weight": thing}, path, _use_new_zipfile_serialization=archive)
        with pytest.raises(EgoGenError, match=f"{name}.pth"):
            load_state_dict(path)
    assert not ran.exists()


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(state_dict("alexnet", r"features\."), path)
    for build in (lambda: perceptual.network("vgg", path), lambda: frechet.inception(path)):
        with pytest.raises(EgoGenError, match="vgg16-397923af.pth"):
            build()


OF_FILES = {  # manifest -> what the names of its network begin with
    "clip_vit_l14_visual": ("visual.",),
    "blip_base": captions.PARTS,
    "egovlp_4f": egovlp.PARTS,
    "inception": frechet.PARTS,
    "squeezenet1_1": ("features.",),
}
RULES = ("{}", "module.{}", "module._orig_mod.{}", "model.{}", "base_model.model.{}")


@pytest.mark.parametrize("manifest", OF_FILES)
def test_every_metric_reads_what_other_tools_wrap(manifest, tmp_path):
    parts = OF_FILES[manifest]
    names = json.loads((DATA / "manifests" / f"{manifest}.json").read_text())
    state = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    wanted = {name for name in names if name.startswith(parts)}
    assert wanted
    for rule in RULES:
        wrapped = {rule.format(name): value.half() for name, value in state.items()}
        torch.save({"module": wrapped, "score": np.float64(1)}, tmp_path / "a.pth")
        torch.save({"state_dict": wrapped}, tmp_path / "b.pth", pickle_protocol=4)
        torch.save(wrapped | {"epoch": 3}, tmp_path / "c.pth")
        for name in "abc":
            found = load_state_dict(tmp_path / f"{name}.pth", parts)
            assert wanted <= found.keys()
            assert all(found[n] == state[n].half() and found[n].dtype.itemsize == 4 for n in wanted)
    if len(parts) == 1:  # the network alone, whose names lack the level
        bare = {name.removeprefix(parts[0]): state[name] for name in wanted}
        torch.save(bare, tmp_path / "bare.pth")
        assert load_state_dict(tmp_path / "bare.pth", parts).keys() == wanted


def test_lpips_of_a_wrapped_backbone(tmp_path):
    path = weight_file(tmp_path, "squeeze")
    expected = perceptual.network("squeeze", path).state_dict()
    state = {f"module._orig_mod.{n}": v for n, v in torch.load(path).items()}
    wrapped = tmp_path / "wrapped.pth"
    torch.save({"model_state_dict": state, "step": np.int64(3)}, wrapped)
    found = perceptual.network("squeeze", wrapped).state_dict()
    names = [name for name in expected if name.startswith("net.")]
    assert names and all(torch.equal(found[name], expected[name]) for name in names)
