"""docs/tour.ipynb runs on tiny models, says what is so, and shows what its own code has drawn.

    LEGO_TOUR_VLLM=... LEGO_TOUR_LDM=... python tests/test_tour.py    # keeps what it then shows

(from the project's folder, with the models of a mini run; of the quick start where none are named).
"""

import base64
import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
FACTS = """
import json
both = [f"The {hand} hand lifts it" for hand in ("left", "right")]
one, two = (stages.describe(photos, actions, texts=[t])[0].features["text"] for t in both)
print(json.dumps({
    "moved": np.abs(one[:len(two)].astype(float) - two[:len(one)]).mean(1).tolist(),
    "sums": [sums.min().item(), sums.max().item()], "shape": [*attention.shape],
    "shares": [part.sum(1).mean().item() for part in parts.values()],
    "rows": list(counts.values()), "seen": len(seen), "steps": config.inference.steps,
    "layers": len(layers), "words": [word for word, _ in maps], "text": described.text,
    "maps": [[*values.shape] for _, values in maps],
    "grid": [[*key] for key in grid],
    "differ": len({picture.tobytes() for picture in grid.values()}),
    "pca": [*pca.shape], "range": [float(pca.min()), float(pca.max())],
    "again": stages.draw(photos, actions, [described])[0].image.tobytes() == frame.image.tobytes(),
    "size": [*frame.image.size], "photo": [*photo.size], "paths": [str(p) for p in paths.values()],
}))
"""


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook) -> str:
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()


def execute(notebook) -> None:
    where = {"metadata": {"path": str(TOUR.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources=where
    )
    client.execute()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Environment that names tiny models: the mini config with two steps and random weights."""
    import torch
    import yaml
    from small_model import params_of, random_weights
    from vllm_tiny import write_released

    from ldm.checkpoints.layouts import to_own

    root = tmp_path_factory.mktemp("models")
    config = yaml.safe_load((ROOT / "configs" / "generate_mini.yaml").read_text())
    config["model"]["params"]["conditioner"]["feature_dim"] = 64
    config["model"]["params"]["unet_config"]["params"]["channel_mult"] = [1, 2, 2]
    config["inference"]["steps"] = 2
    path = root / "generate.yaml"
    path.write_text(yaml.safe_dump(config))
    weights = random_weights(params_of(path), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, root / "frame.ckpt")
    names = {"VLLM": write_released(root / "vllm"), "LDM": root / "frame.ckpt", "CONFIG": path}
    return {f"LEGO_TOUR_{name}": str(place) for name, place in names.items()}


@pytest.fixture(scope="module")
def facts(tiny):
    """What the notebook's names hold when all of it has run."""
    notebook = nbformat.read(TOUR, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**tiny, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        execute(notebook)
    return json.loads(notebook.cells[-1].outputs[-1].text)


def test_attention_at_every_spot_sums_to_one_over_all_rows(facts):
    assert facts["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert sum(facts["shares"]) == pytest.approx(1, abs=1e-5) and min(facts["shares"]) > 0
    assert facts["rows"] == [77, 256, 77] and facts["shape"] == [8 * 8, 77 + 256 + 77]


def test_maps_are_of_every_layer_step_and_word(facts):
    assert facts["seen"] == facts["layers"] * facts["steps"] == 7 * 2
    said = re.findall(r"\w+", facts["text"])
    assert facts["words"] and facts["words"] == said[: len(facts["words"])]
    assert set(map(tuple, facts["maps"])) == {(8, 8)}


def test_the_grid_has_a_frame_of_its_own_for_each_pair_of_scales(facts):
    pairs = {tuple(pair) for pair in facts["grid"]}
    assert len(facts["grid"]) == len(pairs) == 12 == facts["differ"]
    assert len({image for image, _ in pairs}) * len({text for _, text in pairs}) == 12


def test_features_are_drawn_as_a_map_and_rows_before_an_edit_stay(facts):
    assert facts["pca"] == [16, 16, 3] and facts["range"] == [0, 1]
    first, *rest = facts["moved"]
    assert first == 0 and max(rest) > 0  # "The", and from the hand's side on


def test_the_same_description_and_seed_draw_the_same_frame(facts):
    """Of the photograph's aspect, by the models that the environment names."""
    assert facts["again"]
    (width, height), (wide, high) = facts["size"], facts["photo"]
    assert abs(width / height - wide / high) < 0.02
    assert all("models" in path for path in facts["paths"])


def test_what_is_stored_belongs_to_the_code_and_to_no_machine():
    text = TOUR.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    assert notebook.metadata["outputs_of"] == digest(notebook), "run: python tests/test_tour.py"
    assert [c.execution_count for c in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert {output.name for output in outputs if "name" in output} == {"stdout"}
    assert len(text) < 400_000
    shown = "".join(cell.source for cell in notebook.cells)
    shown += "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"/(home|work|root|tmp|usr|Users)\b", shown)


def test_stored_pictures_are_jpeg_and_each_shows_something():
    import numpy as np
    from PIL import Image

    pictures = [
        output.data["image/jpeg"]
        for cell in code(nbformat.read(TOUR, 4))
        for output in cell.outputs
        if output.output_type == "display_data"
    ]
    assert len(pictures) == 7
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert image.format == "JPEG" and np.asarray(image).std() > 10


def test_the_stored_edit_exchanges_the_hands_and_nothing_else():
    outputs = [out for cell in code(nbformat.read(TOUR, 4)) for out in cell.outputs]
    texts = [output.get("text", "") for output in outputs]
    written, edited = (text for text in texts if text.startswith("The person"))
    assert written != edited and "hand" in written
    swap = {"left": "right", "right": "left"}
    same = re.sub("(left|right)(?= hand)", lambda found: swap[found[0]], written)
    assert same == edited


if __name__ == "__main__":
    made = nbformat.read(TOUR, 4)
    execute(made)
    made.metadata["outputs_of"] = digest(made)
    nbformat.write(made, TOUR)
    print(f"{TOUR.relative_to(ROOT)}: {os.path.getsize(TOUR) / 1000:.0f} kB", file=sys.stderr)
