"""Description in either feature layout, features of texts that are there, and conversions."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import image
from vllm_layouts import describe, golden_request
from vllm_tiny import read, write_released

from egogen.errors import EgoGenError, run_command
from egogen.features.projector import keep_projector
from egogen.features.shards import PATTERN
from egogen.features.store import feature_path, open_store, read_info
from egogen.jobs import ceil_chunk
from egogen.labels import clean_label, question
from llava.checkpoints.load import load
from llava.describing import loop as description_loop
from llava.describing.decoding import Decoding
from llava.describing.feature_conversion import projector_from
from llava.describing.job import Job
from llava.describing.llava_describer import LlavaDescriber, answer_ids, prompt_ids
from llava.describing.loop import run
from llava.describing.results import chunk_files, merge_results, result_file
from llava.eval import convert_features, make_features
from llava.tokens import expand

GENERATION, LOOP = read("generation.json"), read("loop_output.json")
ENTRIES = [
    (clip, action, fields)
    for clip, actions in LOOP["action_label_file"].items()
    for action, fields in actions.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder, device="cpu")


def describer_of(loaded, temperature=0.0):
    settings = Decoding(temperature=temperature, max_new_tokens=4)
    return LlavaDescriber(loaded, settings)


@pytest.fixture(scope="module")
def describer(loaded):
    return describer_of(loaded)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Images and action file of the released loop's own run; lossless under their names."""
    root = tmp_path_factory.mktemp("frames")
    for path, (name, height, width, seed) in LOOP["images"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(name, height, width, seed)).save(root / path, format="png")
    (root / "ego4d_val.json").write_text(json.dumps(LOOP["action_label_file"]))
    return root


def job(frames, out, layout="released", **options) -> Job:
    return Job(
        image_dir=frames,
        action_label=frames / "ego4d_val.json",
        dataset="ego4d",
        save_path=out / "run" / "val",
        feature_paths={"image": out / "fi", "text": out / "ft"},
        feature_layout=layout,
        **options,
    )


@pytest.fixture(scope="module")
def released(frames, describer, tmp_path_factory):
    out = tmp_path_factory.mktemp("released_layout")
    assert run(job(frames, out), describer) == 0
    return out


@pytest.fixture(scope="module")
def compact(frames, describer, tmp_path_factory):
    out = tmp_path_factory.mktemp("compact_layout")
    assert run(job(frames, out, "compact"), describer) == 0
    return out


# ---- the released loop


@pytest.mark.parametrize("golden", LOOP["runs"], ids=lambda golden: f"chunk{golden['chunk_idx']}")
def test_the_released_loops_files(frames, describer, tmp_path, golden):
    """Names, shapes and texts of a whole greedy run of the released loop, exactly."""
    chunks = {"num_chunks": golden["num_chunks"], "chunk_idx": golden["chunk_idx"]}
    run(job(frames, tmp_path / "out", label_style="released", **chunks), describer)
    for path, shape in golden["feature_shapes"].items():
        assert np.load(tmp_path / "out" / path).shape == tuple(shape)
    (path, content), *_ = golden["json"].items()
    written = tmp_path / path
    assert json.loads(written.read_text(encoding="utf-8")) == content
    made = [p for p in (tmp_path / "out").rglob("*.*") if p.suffix in (".npy", ".json")]
    names = {str(p.relative_to(tmp_path / "out")).removeprefix("out/") for p in made}
    known = {name.removeprefix("out/") for name in golden["files"]}
    assert names - known == {"fi/feature_info.json", "ft/feature_info.json", "run/val/made_by.json"}
    assert known <= names


def test_the_released_names_of_result_files():
    for path, expected in LOOP["save_path_to_file_chunk_1"].items():
        if path in ("out/run/val", "a/b"):  # elsewhere the released name depends on a slash
            assert str(result_file(path, 1)) == expected
    assert str(result_file("out/run/val/", 1)) == "out/run/val/run_1.json"
    assert str(result_file("val", 1)) == "val/val_1.json"


def test_the_released_chunks():
    for case in read("chunks.json")["cases"]:
        clips = list(range(case["n_clips"]))
        for chunk in case["by_chunk_idx"]:
            number = chunk["chunk_idx"]
            if number == 0 or number > case["num_chunks"]:  # wraps round, or an IndexError, there
                with pytest.raises(EgoGenError, match="chunk index"):
                    ceil_chunk(clips, case["num_chunks"], number)
            elif "error" in chunk:  # fewer chunks than asked for: the rest is empty here
                assert not ceil_chunk(clips, case["num_chunks"], number)
            else:
                part = ceil_chunk(clips, case["num_chunks"], number)
                assert (part[0], part[-1]) == (chunk["first"], chunk["last"])


def test_first_tokens_that_are_drawn_are_ones_that_the_released_law_allows(loaded):
    """The golden sampled texts themselves cannot be had again: before the first draw the released
    code takes numbers from the same stream while it builds its networks.
    """
    cases = [golden_request(case) for case in GENERATION["cases"]]

    def described(order, batch):
        found = {}
        for first in range(0, len(order), batch):
            group = order[first : first + batch]
            images, actions = zip(*[cases[k] for k in group], strict=True)
            made = describe(loaded, images, actions, seeds=group, max_new_tokens=5)
            found |= {k: item.ids for k, item in zip(group, made, strict=True)}
        return found

    once = described([0, 1, 2], 1)
    assert once == described([0, 1, 2], 3) == described([2, 1, 0], 1)
    for number, case in enumerate(GENERATION["cases"]):
        assert once[number][0] in case["released_step0_top50_ids"]


# ---- layouts


def test_both_layouts_give_stage_2_the_same(released, compact):
    merged = [merge_results(chunk_files(out / "run" / "val")) for out in (released, compact)]
    assert merged[0] == merged[1]
    for _, _, fields in ENTRIES:
        one, other = (open_store(out / "fi").read(fields["image_0"]) for out in (released, compact))
        # half precision before the projection, of values up to 5, against half precision after it
        np.testing.assert_allclose(one.astype(np.float32), other, atol=4e-3, rtol=2e-3)
        assert np.array_equal(
            open_store(released / "ft").read(fields["image_0"]),
            open_store(compact / "ft").read(fields["image_0"]),
        )
    info = read_info(compact / "fi")
    assert (info["rows"], info["width"], info["vision_width"]) == (256, 64, 32)
    assert info["image_size"] == 224
    assert len(list((compact / "fi").glob(PATTERN))) == 1


def test_a_killed_compact_run_continues(frames, describer, compact, tmp_path, monkeypatch):
    """Killed after the features of a batch, before its texts: they are made again together."""
    written, real = 0, description_loop.append_results

    def dying(*arguments):
        nonlocal written
        written += 1
        if written == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(description_loop, "append_results", dying)
    with pytest.raises(KeyboardInterrupt):
        run(job(frames, tmp_path, "compact", batch_size=2), describer)
    monkeypatch.setattr(description_loop, "append_results", real)
    assert run(job(frames, tmp_path, "compact", batch_size=2), describer) == 0
    assert len(list((tmp_path / "fi").glob(PATTERN))) == 1
    for kind in ("fi", "ft"):
        for _, _, fields in ENTRIES:
            np.testing.assert_allclose(
                open_store(tmp_path / kind).read(fields["image_0"]),
                open_store(compact / kind).read(fields["image_0"]),
                atol=4e-3,
            )


def test_layouts_are_not_mixed_in_a_folder(frames, describer, released):
    with pytest.raises(EgoGenError, match="layout 'released', expected 'compact'"):
        run(job(frames, released, "compact"), describer)


def test_two_entries_with_one_source_frame_are_refused(frames, describer, tmp_path):
    content = json.loads(json.dumps(LOOP["action_label_file"]))
    content["clip_0"]["1"]["image_0"] = content["clip_0"]["0"]["image_0"]
    (tmp_path / "ego4d_val.json").write_text(json.dumps(content))
    options = job(frames, tmp_path / "out")
    options = Job(**{**vars(options), "action_label": tmp_path / "ego4d_val.json"})
    with pytest.raises(EgoGenError, match="clip_0/0 and clip_0/1 have the same image_0"):
        run(options, describer)


def test_results_of_other_settings_are_refused(frames, loaded, released):
    with pytest.raises(EgoGenError, match="temperature 0.0, expected 0.7"):
        run(job(frames, released), describer_of(loaded, temperature=0.7))


def test_missing_last_chunks_are_named(frames, describer, tmp_path):
    for index in (1, 2):
        run(job(frames, tmp_path, num_chunks=4, chunk_idx=index), describer)
    with pytest.raises(EgoGenError, match="chunks 3, 4 are missing"):
        chunk_files(tmp_path / "run" / "val")


# ---- commands


def command(capsys, module, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        run_command(module.main, list(map(str, arguments)))
    shown = capsys.readouterr()
    return stop.value.code, shown.err + shown.out


def digest(root):
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(root.rglob("*.*")))).hexdigest()


@pytest.fixture(scope="module")
def texts(frames, tmp_path_factory):
    """An action file with texts, and what teacher forcing makes of them one by one."""
    content = json.loads(json.dumps(LOOP["action_label_file"]))
    for number, (clip, action, _) in enumerate(ENTRIES):
        content[clip][action]["llava_forecast_finetune"] = f"The hand does it {'so ' * number}."
    path = tmp_path_factory.mktemp("texts") / "ego4d_val.json"
    path.write_text(json.dumps(content))
    return path, content


@pytest.mark.parametrize("layout", ["released", "compact"])
def test_features_are_made_from_the_json_alone(
    capsys, frames, folder, loaded, texts, tmp_path, layout
):
    path, content = texts
    arguments = ["--model-path", folder, "--image-dir", frames, "--descriptions", path]
    arguments += ["--save-image-feature-path", tmp_path / "fi", "--feature-layout", layout]
    arguments += ["--save-text-feature-path", tmp_path / "ft", "--device", "cpu"]
    assert command(capsys, make_features, *arguments)[0] == 0
    for clip, action, fields in ENTRIES[:3]:
        asked = question(clean_label(fields["action"], "ego4d"))
        ids = answer_ids(loaded, asked, content[clip][action]["llava_forecast_finetune"])
        frame = Image.open(frames / fields["image_0"])
        prompt = expand(prompt_ids(loaded, asked), 256)
        with torch.inference_mode():
            features = loaded.model.image_features(loaded.image_processor.batch([frame]))
            embeds = loaded.model.embed(torch.tensor([prompt + ids]), features)
            hidden = loaded.model.model.language_model(inputs_embeds=embeds).last_hidden_state[0]
        expected = hidden[len(prompt) - 1 : -1]
        found = open_store(tmp_path / "ft").read(fields["image_0"])
        np.testing.assert_allclose(found, expected.numpy(), atol=4e-3)
        stored = open_store(tmp_path / "fi").read(fields["image_0"], width=64, rows=256)
        np.testing.assert_allclose(stored, features[0].numpy(), atol=4e-3, rtol=2e-3)
    before = digest(tmp_path)
    assert command(capsys, make_features, *arguments)[0] == 0
    assert digest(tmp_path) == before


def test_texts_that_are_missing_are_named(capsys, frames, folder, texts, tmp_path):
    content = json.loads(texts[0].read_text())
    content["clip_3"]["30"]["llava_forecast_finetune"] = "  "
    path = tmp_path / "ego4d_val.json"
    path.write_text(json.dumps(content))
    arguments = ["--model-path", folder, "--image-dir", frames, "--descriptions", path]
    code, shown = command(capsys, make_features, *arguments)
    assert code == 2 and "nothing to make" in shown
    code, shown = command(
        capsys, make_features, *arguments, "--save-text-feature-path", tmp_path / "ft"
    )
    assert code == 2 and "1 of 8 entries" in shown and "clip_3/30" in shown
    assert not (tmp_path / "ft").exists()


def test_conversion_there_and_back(capsys, frames, folder, released, tmp_path):
    label = ["--action-label", frames / "ego4d_val.json"]
    image_there = ["--kind", "image", "--to", "compact", "--projector", folder, *label]
    back = ["--kind", "image", "--to", "released", *label]
    text_there = ["--kind", "text", "--to", "compact", *label]
    for chunk in (1, 2):
        chunks = ["--num-chunks", 2, "--chunk-idx", chunk]
        code, shown = command(
            capsys, convert_features, *image_there, *chunks, released / "fi", tmp_path / "ci"
        )
        assert code == 0 and "largest residual" in shown
    assert command(capsys, convert_features, *back, tmp_path / "ci", tmp_path / "fi")[0] == 0
    assert command(capsys, convert_features, *text_there, released / "ft", tmp_path / "ct")[0] == 0
    for _, _, fields in ENTRIES:
        name = fields["image_0"]
        expected = np.load(feature_path(released / "fi", name)).astype(np.float32)
        for root in ("ci", "fi"):
            found = open_store(tmp_path / root).read(name, width=64, rows=256)
            np.testing.assert_allclose(found, expected, atol=4e-3, rtol=2e-3)
        assert np.array_equal(
            open_store(tmp_path / "ct").read(name), open_store(released / "ft").read(name)
        )
    assert open_store(tmp_path / "ci").stored(ENTRIES[0][2]["image_0"]).shape == (256, 32)
    before = digest(tmp_path)
    assert command(capsys, convert_features, *back, tmp_path / "ci", tmp_path / "fi")[0] == 0
    assert digest(tmp_path) == before


def test_features_of_another_projector_are_refused(capsys, frames, loaded, released, tmp_path):
    projector = projector_from(loaded.folder)
    projector.state["linear_1.weight"] = projector.state["linear_1.weight"].flip(0)
    keep_projector(tmp_path / "other", projector)
    (tmp_path / "other" / "feature_info.json").write_text('{"layout": "compact", "kind": "image"}')
    arguments = ["--kind", "image", "--to", "compact", "--projector", tmp_path / "other"]
    arguments += ["--action-label", frames / "ego4d_val.json", released / "fi", tmp_path / "ci"]
    code, shown = command(capsys, convert_features, *arguments)
    assert code == 2 and "not made with this projector" in shown and "clip_0/0" in shown
    assert not list((tmp_path / "ci").glob(PATTERN))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"--projector": None}, "expected --projector"),
        ({"--to": "released"}, "has the released layout already"),
        ({"--kind": "text"}, "a store of image features"),
    ],
)
def test_conversions_that_make_no_sense(capsys, frames, folder, released, tmp_path, change, words):
    options = {"--kind": "image", "--to": "compact", "--projector": folder} | change
    arguments = [word for pair in options.items() if pair[1] for word in pair]
    arguments += ["--action-label", frames / "ego4d_val.json", released / "fi", tmp_path / "x"]
    code, shown = command(capsys, convert_features, *arguments)
    assert code == 2 and words in shown and not (tmp_path / "x").exists()
