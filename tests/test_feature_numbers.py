"""Features in every form that people keep them in: taken as they are meant, or refused by name,
from files, shards and arrays alike.
"""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from safetensors.numpy import save_file
from small_model import FEATURE_DIM, IMAGE_ROWS, params_of, random_model, write_config

from egogen import EgoGenError
from egogen.atomic import write_json
from egogen.check import FileTask, read_task
from egogen.features.projector import Projector, keep_projector
from egogen.features.store import INFO_FILE, as_feature, load_feature, open_store
from ldm.pipeline import LegoPipeline

FRAME, KEY = "clip/0/frame.jpg", "clip/0/frame"
ROWS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)

TAKEN = {
    "half precision": ROWS.astype(np.float16),
    "single precision": ROWS,
    "double precision": ROWS.astype(np.float64),
    "long double": ROWS.astype(np.longdouble),
    "big-endian half": ROWS.astype(">f2"),
    "big-endian single": ROWS.astype(">f4"),
    "big-endian double": ROWS.astype(">f8"),
    "by columns": np.asfortranarray(ROWS),
    "backwards": ROWS[::-1],
    "every second number": np.repeat(ROWS, 2, axis=1)[:, ::2],
    "answer tokens and steps": np.stack([ROWS - 1, ROWS], axis=1),
    "one token, one step": ROWS[:1][None],
    "one-token answer": ROWS[0],
    "large single precision": np.full((2, 8), 1e30, np.float32),
    "largest numbers": np.array([[65504, -65504]], np.float16),
}
REFUSED = {
    "a batch of one": (ROWS[None], r"feature of shape \(1, 3, 8\), expected \(n, d\): without"),
    "a batch of one image": (np.ones((1, 256, 8)), r"feature of shape \(1, 256, 8\)"),
    "four axes": (ROWS[None, None], r"feature of shape \(1, 1, 3, 8\)"),
    "nothing": (ROWS[:0], r"feature of shape \(0, 8\)"),
    "beyond single precision": (np.full((2, 8), 1e300), "NaN or infinity"),
    "infinite": (np.array([[1, -np.inf]], np.float32), "NaN or infinity"),
    "infinite half": (np.array([[-np.inf, 1]], np.float16), "NaN or infinity"),
    "not a number": (np.array([[np.nan, 1]]), "NaN or infinity"),
    "big-endian infinite": (np.array([[np.inf, 1]], ">f2"), "NaN or infinity"),
    "whole numbers": (np.ones((2, 8), int), "floating point array, found int64"),
    "truths": (np.ones((2, 8), bool), "floating point array, found bool"),
    "complex": (np.ones((2, 8), complex), "floating point array, found complex128"),
    "texts": (np.array([["a"]]), "floating point array, found <U1"),
}


def write_array(root, array):
    path = root / f"{KEY}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def write_shard(root, array, **info):
    write_json(root / INFO_FILE, {"kind": "text", "layout": "compact", **info})
    save_file({KEY: np.ascontiguousarray(array)}, root / "1234-a.safetensors")


@pytest.mark.parametrize("name", TAKEN)
def test_forms_that_are_taken(name, tmp_path):
    array = TAKEN[name]
    path = write_array(tmp_path, array)
    wanted = array[:, -1] if array.ndim == 3 else np.atleast_2d(array)
    store = open_store(tmp_path)
    assert store.shape(FRAME) == wanted.shape
    for found in (
        as_feature(array, "x"),
        load_feature(path),
        store.stored(FRAME, width=wanted.shape[1], rows=len(wanted)),
    ):
        kind = np.float16 if array.dtype.itemsize == 2 else np.float32
        assert found.dtype == kind and found.dtype.isnative
        np.testing.assert_array_equal(found, wanted.astype(kind))
        torch.from_numpy(found)


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_are_refused(name, tmp_path):
    array, told = REFUSED[name]
    path = write_array(tmp_path, array)
    for read, where in (
        (lambda: as_feature(array, "given"), "given"),
        (lambda: load_feature(path), str(path)),
        (lambda: open_store(tmp_path).stored(FRAME), str(path)),
    ):
        with pytest.raises(EgoGenError, match=f"^{where}: .*{told}"):
            read()


@pytest.mark.parametrize("name", [n for n in TAKEN if TAKEN[n].ndim == 2 and n != "long double"])
def test_shards_are_read_alike(name, tmp_path):
    native = TAKEN[name].astype(TAKEN[name].dtype.newbyteorder("="))
    write_shard(tmp_path, native)
    found = open_store(tmp_path).stored(FRAME)
    np.testing.assert_array_equal(found, as_feature(TAKEN[name], "x"))
    assert found.dtype == as_feature(TAKEN[name], "x").dtype


@pytest.mark.parametrize(
    "array, told",
    [
        (ROWS[None], r"shape \(1, 3, 8\), expected \(n, d\)"),
        (np.full((2, 8), 1e300), "NaN or infinity"),
        (np.ones((2, 8), int), "floating point array, found int64"),
    ],
)
def test_shards_are_refused_alike(array, told, tmp_path):
    write_shard(tmp_path, array)
    with pytest.raises(EgoGenError, match=f"feature of frame {FRAME}: .*{told}"):
        open_store(tmp_path).stored(FRAME)


def test_a_shard_in_bfloat16_is_refused(tmp_path):
    write_shard(tmp_path, ROWS)
    head = json.dumps({KEY: {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(head)) + head + bytes(4)
    (tmp_path / "1234-a.safetensors").write_bytes(content)
    with pytest.raises(EgoGenError, match=f"feature {KEY}: .*bfloat16.*expected float16"):
        open_store(tmp_path).stored(FRAME)


def test_rows_that_a_projector_makes_infinite_are_refused(tmp_path):
    state = {"linear_1.weight": torch.full((4, 8), 1e5), "linear_1.bias": torch.zeros(4)}
    keep_projector(tmp_path, Projector(state, "x"))
    write_shard(tmp_path, np.ones((2, 8), np.float16), projector=True)
    with pytest.raises(EgoGenError, match="NaN or infinity"):
        open_store(tmp_path).read(FRAME)


def test_the_check_names_a_batch_of_one(tmp_path):
    path = write_array(tmp_path, np.ones((1, 256, 8), np.float16))
    problem, shape = read_task(FileTask("image", "clip 0", str(tmp_path), FRAME))
    assert problem.startswith(f"{path}: feature of shape (1, 256, 8)") and shape is None


def test_file_and_array_give_the_same_frame(tmp_path):
    """Whatever the array's axes and numbers: the pipeline takes or refuses both."""
    pipe = LegoPipeline.from_model(random_model(params_of(write_config(tmp_path))))
    pipe.set_progress_bar_config(disable=True)
    photo = Image.fromarray(image("photo.0", 48, 64))
    rows = np.random.default_rng(1).standard_normal((IMAGE_ROWS, FEATURE_DIM)).astype(np.float32)

    def frame(text):
        made = pipe(photo, "a b", rows, text, num_inference_steps=1, output_type="np")
        return made.images

    base = frame(ROWS)
    for name in ("double precision", "big-endian single", "backwards", "answer tokens and steps"):
        array = TAKEN[name]
        np.testing.assert_array_equal(frame(array), frame(str(write_array(tmp_path, array))))
        if name != "backwards":
            np.testing.assert_array_equal(frame(array), base)
    np.testing.assert_array_equal(frame(torch.from_numpy(ROWS)[None]), base)  # a batch, as ever
    half = torch.from_numpy(ROWS).bfloat16()
    np.testing.assert_array_equal(frame(half), frame(half.float().numpy()))
    with pytest.raises(EgoGenError, match=r"frame.npy: feature of shape \(1, 3, 8\)"):
        frame(str(write_array(tmp_path, ROWS[None])))
    for bad in (
        torch.ones(2, 8, dtype=torch.int64),
        torch.full((2, 8), 1e300, dtype=torch.float64),
    ):
        with pytest.raises(EgoGenError, match="text_features: (expected a floating|.*infinity)"):
            frame(bad)
