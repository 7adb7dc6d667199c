"""Everything the commands read, small and sound, in one folder that a test may damage.

The folder is made once; what a case changes is put back after it from an untouched copy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import bad_input_curating
import bad_input_hub
import bad_input_judge
import bad_input_served
import bad_input_study
import model_families
import torch
from omegaconf import OmegaConf
from PIL import Image
from small_model import params_of, random_weights
from small_training import CONFIG, train_run, write_run
from vllm_tiny import write_released

import egogen.build.__main__
import egogen.check
import egogen.download.__main__
import ldm.cache
import llava.eval.convert_features
import llava.eval.make_features
import llava.eval.run_llava_in_loop
import llava.train.train
import main as training
import mini.__main__
import mini.oracle.score
import mini.swapped
from egogen import layout
from ldm.checkpoints.layouts import to_own
from metrics import all_metrics_in_one, compare, copy_source, inference, report

PROJECT = Path(__file__).parents[1]
DATASET, CLIP = "ego4d", "ego4d-val-clip0"
VLLM_WIDTH = 64  # of the tiny model's features


def script(path: str) -> Callable[[Sequence[str]], int | None]:
    """`main` of a script that stands in no package; what it does to the path is undone."""
    kept = list(sys.path)
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], PROJECT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = kept
    return module.main


# Name of an entry point -> its main, and what a user types behind it; {root} is the world's folder.
FRAMES = "{root}/EgoGen/ego4d.fho"
STAGE_1 = (
    f"--model-path {{root}}/vllm --image-dir {FRAMES}/val --device cpu --batch-size 4 "
    "--save-image-feature-path {root}/out/image --save-text-feature-path {root}/out/text "
)
ENTRIES: dict[str, tuple[Callable, str]] = {
    "check": (
        egogen.check.main,
        "{root} --workers 1 --image-features train={root}/image/train "
        "--image-features val={root}/image/val --text-features train={root}/text/train "
        "--text-features val={root}/text/val",
    ),
    "build": (
        egogen.build.__main__.main,
        "{root}/out --table {root}/actions.csv --videos {root}/videos --fps 10",
    ),
    "curate": (bad_input_curating.curate, bad_input_curating.LINE),
    "download": (
        egogen.download.__main__.main,
        "dataset {root}/out --manifest {root}/manifest.json",
    ),
    "render": (
        mini.__main__.main,
        "{root}/out --datasets ego4d --pairs 3 --val-pairs 1 --workers 1",
    ),
    "score": (
        mini.oracle.score.main,
        "--dataset-root {root}/mini --name ego4d --gen-path {root}/mini/made --out {root}/out.json",
    ),
    "swap": (
        mini.swapped.main,
        "--actions {root}/ego4d_val.json --text {root}/text/val --image {root}/image/val "
        "--out {root}/out",
    ),
    "tune": (
        llava.train.train.main,
        "--model_name_or_path {root}/vllm --data_path {root}/conversations.json "
        f"--image_folder {FRAMES}/train --output_dir {{root}}/out --max_steps 1 "
        "--per_device_train_batch_size 4 --report_to none --use_cpu True",
    ),
    "describe": (
        llava.eval.run_llava_in_loop.main,
        f"{STAGE_1} --action-label {{root}}/ego4d_val.json --save-path {{root}}/out/chunks "
        "--temperature 0 --max-new-tokens 2",
    ),
    "describe served": (bad_input_served.describe, bad_input_served.LINE),
    "merge": (
        script("vllm/scripts/merge_inference_results.py"),
        "{root}/chunks --output {root}/out/merged.json --action-label {root}/ego4d_val.json "
        "--actions-output {root}/out/actions.json",
    ),
    "features": (
        llava.eval.make_features.main,
        f"{STAGE_1} --descriptions {{root}}/ego4d_val.json",
    ),
    "compact": (
        llava.eval.convert_features.main,
        "{root}/text/val {root}/out --kind text --to compact --action-label {root}/ego4d_val.json",
    ),
    "convert vllm": (
        script("vllm/scripts/convert_checkpoint.py"),
        "{root}/vllm {root}/out --to hub",
    ),
    "cache": (ldm.cache.main, "--config {root}/train.yaml --out {root}/out"),
    "train": (training.main, "--name a --logdir {root}/out --base {root}/train.yaml --train"),
    "generate": (
        inference.main,
        "--config {root}/generate.yaml --ckpt {root}/model.ckpt",
    ),
    "convert ldm": (
        script("scripts/convert_checkpoint.py"),
        "{root}/model.ckpt {root}/out --to diffusers --config {root}/generate.yaml",
    ),
    "frame": (
        script("scripts/generate_frame.py"),
        "--image {root}/photo.jpg --action pick_up_the_mug --vllm {root}/vllm "
        "--ldm {root}/frame.ckpt --config {root}/frame.yaml --out {root}/out.jpg "
        "--device cpu",
    ),
    "hub": (bad_input_hub.hub, ""),
    "hub push": (bad_input_hub.hub, bad_input_hub.LINE),
    "metrics": (
        all_metrics_in_one.main,
        "--dataset ego4d --llava_key llava_forecast_finetune --gen_path {root}/run/images "
        f"--gt_path {FRAMES}/val_gt_for_metric --edit_file {{root}}/ego4d_val.json "
        "--metrics psnr,psnr_changed --out {root}/out --workers 1 --weights {root}/weights",
    ),
    "compare": (compare.main, "{root}/metric {root}/other --out {root}/out"),
    "report": (
        report.main,
        "--dataset ego4d --dataset-root {root} --gen_path {root}/run/images "
        "--metric {root}/metric --out {root}/out",
    ),
    "judge": (bad_input_judge.judge, bad_input_judge.LINE),
    "copy source": (
        copy_source.main,
        f"--source-path {FRAMES}/val --edit_file {{root}}/ego4d_val.json --out {{root}}/out",
    ),
    **bad_input_study.ENTRIES,
}


def write_world(root: Path) -> None:
    """Both stages' inputs, weights that were trained for one step, frames and figures."""
    root.mkdir()
    overrides = write_run(root)
    write_stage_1(root)
    write_configs(root, overrides)
    logs = train_run(overrides, root / "logs", "a", "lightning.trainer.max_steps=1")
    shutil.move(logs / "checkpoints" / "last.ckpt", root / "model.ckpt")
    shutil.rmtree(root / "logs")
    for path in layout.frame_folder(root, DATASET, layout.GROUND_TRUTH).rglob("*.jpg"):
        relative = path.relative_to(layout.frame_folder(root, DATASET, layout.GROUND_TRUTH))
        generated = root / "run" / "images" / relative
        generated.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).point(lambda value: value * 0.9).save(generated)
    for name in ("metric", "other"):
        line = ENTRIES["metrics"][1].replace("{root}/out", f"{{root}}/{name}")
        all_metrics_in_one.main(line.format(root=root).split())
    bad_input_study.write_study(root)
    write_own_data(root)
    write_mini(root / "mini")


def write_mini(root: Path) -> None:
    """A rendered dataset, and its targets as the frames that were made."""
    words = [str(root), "--pairs", "6", "--val-pairs", "3", "--datasets", DATASET, "--workers", "1"]
    mini.__main__.main(words)
    shutil.copytree(layout.frame_folder(root, DATASET, layout.GROUND_TRUTH), root / "made")


def write_stage_1(root: Path) -> None:
    """The tiny models, conversations over the train frames, results of two chunks over val."""
    write_released(root / "vllm")
    model_families.write("qwen2_5_vl", root / "hub")
    entries = json.loads(layout.action_file(root, DATASET, "train").read_text())
    turns = [{"from": "human", "value": "<image>\nHow?"}, {"from": "gpt", "value": "So."}]
    rows = [
        {"id": str(number), "image": fields["image_0"], "conversations": turns}
        for number, fields in enumerate(e for actions in entries.values() for e in actions.values())
    ]
    (root / "conversations.json").write_text(json.dumps(rows))
    content = json.loads(layout.action_file(root, DATASET, "val").read_text())
    (root / "chunks").mkdir()
    for number, (clip, actions) in enumerate(content.items(), 1):
        results = {
            key: {"original action": fields["action"], "action": "x", "description": "So."}
            for key, fields in actions.items()
        }
        (root / "chunks" / f"vllm_{number}.json").write_text(json.dumps({clip: results}))


def write_configs(root: Path, overrides: Sequence[str]) -> None:
    """train.yaml and generate.yaml with everything that the small run says on its command line."""
    train = OmegaConf.merge(OmegaConf.load(CONFIG), OmegaConf.from_dotlist(list(overrides)))
    OmegaConf.save(train, root / "train.yaml")
    path = PROJECT / "configs" / "generate_mini.yaml"
    generate = OmegaConf.load(path)
    part = {k: v for k, v in train.data.params.validation.params.items() if k != "flip_prob"}
    model = {k: v for k, v in train.model.params.items() if k in generate.model.params}
    generate.model.params = OmegaConf.merge(generate.model.params, model)
    generate.data.params = OmegaConf.merge(generate.data.params, part)
    generate.data.metadata_path = str(root / "ego4d_metadata.json")
    generate.inference.steps = 1
    OmegaConf.save(generate, root / "generate.yaml")
    generate.model.params.conditioner.feature_dim = VLLM_WIDTH
    OmegaConf.save(generate, root / "frame.yaml")
    weights = random_weights(params_of(root / "frame.yaml"), ("unet", "conditioner"))
    torch.save({"state_dict": to_own(weights), "ema_updates": 1}, root / "frame.ckpt")


def write_own_data(root: Path) -> None:
    """A folder of frames with its table, a download list and a photograph."""
    folder = root / "videos" / "kitchen"
    folder.mkdir(parents=True)
    frame = layout.frame_folder(root, DATASET, "val") / CLIP / "0" / "frame_000010.jpg"
    for number in range(30):
        shutil.copyfile(frame, folder / f"{number}.jpg")
    shutil.copyfile(frame, root / "photo.jpg")
    rows = ["clip,start,action,end,contact,split,id", "kitchen,1.0,pick up the mug,,2.0,val,a"]
    (root / "actions.csv").write_text("\n".join(rows) + "\n")
    files = [{"name": "a.bin", "url": "http://127.0.0.1:9/a.bin"}]
    (root / "manifest.json").write_text(json.dumps({"dataset": {"folder": "x", "files": files}}))
    (root / "weights").mkdir()


def state(root: Path) -> dict[str, tuple[int, int]]:
    """{file or folder: (size, time of change)} below `root`; folders and links without them.

    Called thousands of times: so it asks the system once a file.
    """
    found, folders = {}, [""]
    for folder in folders:
        for entry in os.scandir(root / folder):
            name, whole = f"{folder}{entry.name}", entry.is_file(follow_symlinks=False)
            stat = entry.stat(follow_symlinks=False) if whole else None
            found[name] = (stat.st_size, stat.st_mtime_ns) if stat else (0, 0)
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
    return found


class World:
    """The folder `root`, its untouched copy, and what it should hold."""

    def __init__(self, parent: Path):
        self.root, self.copy = parent / "world", parent / "untouched"
        write_world(self.root)
        shutil.copytree(self.root, self.copy)  # keeps the times
        self.sound = state(self.root)

    def restore(self) -> list[str]:
        """Put everything back; -> the files that were not there before."""
        now = state(self.root)
        new = sorted(set(now) - set(self.sound), reverse=True)
        for path in new:
            target = self.root / path
            shutil.rmtree(
                target
            ) if target.is_dir() and not target.is_symlink() else target.unlink()
        for path, (size, time) in self.sound.items():
            target, kept = self.root / path, self.copy / path
            if now.get(path) == (size, time):
                continue
            if target.is_symlink():
                target.unlink()
            if target.is_dir() and not kept.is_dir():
                shutil.rmtree(target)
            if kept.is_dir():
                target.unlink(missing_ok=True) if not target.is_dir() else None
                target.mkdir(exist_ok=True)
            else:
                shutil.copy2(kept, target)
        return sorted(new)
