"""A frame of the command is one of the pipeline, and its noise belongs to the action."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from small_model import FEATURE_DIM, IMAGE_ROWS, RESOLUTION, random_weights, write_small

from egogen.features.store import write_feature
from egogen.seeds import stable_seed
from ldm.checkpoints.layouts import to_own
from ldm.pipeline import LegoPipeline
from metrics.inference import main

SEED, HEIGHT = 5, 48


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two actions of one clip with equal input; their folder, and the frames of the command."""
    root = tmp_path_factory.mktemp("both")
    config, params, _ = write_small(root)
    weights = random_weights(params, ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights)}, root / "X.ckpt")
    entries, draw = {}, np.random.RandomState(0).standard_normal
    features = {"image": draw((IMAGE_ROWS, FEATURE_DIM)), "text": draw((3, FEATURE_DIM))}
    for action in ("3", "4"):
        name = f"kitchen/{action}/frame_1.png"
        path = root / "frames" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(image("photo", 48, 64)).save(path)
        for kind, rows in features.items():
            write_feature(root / kind, name, rows)
        entries[action] = {"image_0": name, "image_1": name.replace("_1.png", "_2.jpg")}
        entries[action] |= {"action": "a b"}
    (root / "edits.json").write_text(json.dumps({"kitchen": entries}))
    (root / "sizes.json").write_text(json.dumps({"kitchen": {"width": 64, "height": 48}}))
    arguments = ["--config", str(config), "--ckpt", str(root / "X.ckpt")]
    for key, value in (
        ("metadata_path", root / "sizes.json"),
        ("params.data_path", root / "frames"),
        ("params.edit_path", root / "edits.json"),
        ("params.res", RESOLUTION),
        ("params.text_prompt_key", "action"),
        ("params.additional_cond_path.llava_image", root / "image"),
        ("params.additional_cond_path.llava_text", root / "text"),
    ):
        arguments.append(f"data.{key}={value}")
    arguments += [f"inference.seed={SEED}", "inference.batch_size=1", f"inference.height={HEIGHT}"]
    assert main(arguments) == 0
    (folder,) = (root / "X").iterdir()
    frames = {a: folder / "images" / "kitchen" / a / "frame_2.jpg" for a in entries}
    return root, config, {action: path.read_bytes() for action, path in frames.items()}


def test_a_frame_of_the_command_is_the_pipelines_with_its_seed(run):
    root, config, frames = run
    pipe = LegoPipeline.from_checkpoint(root / "X.ckpt", config)
    pipe.set_progress_bar_config(disable=True)
    for action, expected in frames.items():
        name = f"kitchen/{action}/frame_1"
        frame = pipe(
            root / "frames" / f"{name}.png",
            "a b",
            root / "image" / f"{name}.npy",
            root / "text" / f"{name}.npy",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(stable_seed(SEED, "kitchen", action)),
            height=HEIGHT,
        ).images[0]
        encoded = io.BytesIO()
        frame.save(encoded, "JPEG", quality=95)
        both = (np.asarray(Image.open(io.BytesIO(x)), int) for x in (encoded.getvalue(), expected))
        difference = np.abs(np.subtract(*both))  # of batches of other sizes, then of JPEG
        assert difference.max() <= 2 and (difference > 0).mean() < 0.05


def test_two_actions_of_one_clip_with_equal_input_differ(run):
    frames = [np.asarray(Image.open(io.BytesIO(data)), dtype=float) for data in run[2].values()]
    assert np.abs(frames[0] - frames[1]).mean() > 2
