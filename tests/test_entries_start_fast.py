"""No entry loads a network's library before arguments, config and files have been looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_dataset import write_dataset, write_features

PROJECT = Path(__file__).parents[1]
# All but the tuning of stage 1, whose flags are those of transformers, and what makes or measures
# the start weights of the mini dataset.
ENTRIES = (
    "main.py",
    "ldm.cache",
    "metrics/inference.py",
    "metrics/all_metrics_in_one.py",
    "metrics/compare.py",
    "metrics/report.py",
    "metrics/copy_source.py",
    "metrics/judge.py",
    "metrics/study.py",
    "llava.eval.run_llava_in_loop",
    "llava.eval.make_features",
    "llava.eval.convert_features",
    "llava.train.merge_lora",
    "vllm/scripts/convert_checkpoint.py",
    "vllm/scripts/merge_inference_results.py",
    "scripts/convert_checkpoint.py",
    "scripts/generate_frame.py",
    "lego.frame",
    "lego.hub",
    "lego.demo",
    "egogen.check",
    "egogen.build",
    "egogen.curate",
    "egogen.download",
    "mini",
    "mini/run.py",
    "mini.oracle.score",
    "mini.swapped",
    "lego:build",
    "lego:curate",
    "lego:check",
    "lego:describe",
    "lego:cache",
    "lego:train",
    "lego:generate",
    "lego:frame",
    "lego:hub",
    "lego:metrics",
    "lego:compare",
    "lego:report",
    "lego:demo",
)
TRAIN = "--name a --base {root}/train.yaml --logdir {root}/logs --train"
DESCRIBE = "--model-path {root}/model --image-dir {root} --action-label {root}/ego4d_val.json"
METRICS = "--dataset ego4d --gen_path {root}/none --gt_path {root}/none --metrics"
REFUSED = [  # entry, arguments, what the one line says
    ("main.py", "--name a --base {root}/none.yaml --train", "no such config file"),
    ("main.py", f"{TRAIN} lightning.trainr.max_steps=1", "did you mean 'lightning.trainer'"),
    ("main.py", f"{TRAIN} lightning.logger=comet", "expected one of tensorboard"),
    ("main.py", f"{TRAIN} data.params.train.params.edit_path={{root}}/none", "none"),
    ("main.py", f"{TRAIN} model.params.ckpt_path={{root}}/none.safetensors", "none.safetensors"),
    ("ldm.cache", "--config {root}/none.yaml --out {root}/out", "no such config file"),
    ("ldm.cache", "--config {root}/train.yaml --dtype int8", "invalid choice"),
    ("ldm.cache", "--config {root}/train.yaml --out {root}/out", "start.safetensors"),
    ("metrics/inference.py", "--config {root}/none.yaml --ckpt x", "no such config file"),
    ("metrics/inference.py", "--config {root}/generate.yaml --ckpt {root}/none.ckpt", "none.ckpt"),
    (
        "metrics/inference.py",
        "--config {root}/generate.yaml --ckpt x inference.step=3",
        "did you mean 'inference.steps'",
    ),
    (
        "metrics/inference.py",
        "--config {root}/generate.yaml --ckpt x inference.sampler=plms",
        "expected one of euler_ancestral, dpmpp_2m, unipc, ddim",
    ),
    ("llava.eval.run_llava_in_loop", f"{DESCRIBE} --save-path {{root}}/o", "model: no such folder"),
    (
        "llava.eval.run_llava_in_loop",
        "--model-path m --image-dir i --action-label {root}/ego4d_none.json --save-path {root}/o",
        "no such file",
    ),
    ("llava.eval.run_llava_in_loop", f"{DESCRIBE} --save-path o --query Why", "one {} for the"),
    ("llava.eval.run_llava_in_loop", f"{DESCRIBE} --save-path o --top-k 0", "at least 1"),
    ("llava.eval.run_llava_in_loop", f"{DESCRIBE} --save-path o --engine openai", "--base-url"),
    (
        "llava.eval.run_llava_in_loop",
        f"{DESCRIBE} --save-path o --engine openai --model m --base-url localhost:1",
        "--base-url: expected http",
    ),
    (
        "llava.eval.run_llava_in_loop",
        "--image-dir i --action-label {root}/ego4d_none.json --save-path o --engine openai "
        "--model m --base-url http://localhost:1/v1 --text-only",
        "no such file",
    ),
    (
        "llava.eval.make_features",
        "--model-path {root}/model --image-dir i --descriptions {root}/ego4d_val.json "
        "--save-text-feature-path {root}/o",
        "model: no such folder",
    ),
    (
        "llava.eval.convert_features",
        "{root}/a {root}/b --kind text --to compact --action-label {root}/none.json",
        "no such file",
    ),
    ("lego.hub", "push {root}/none me/it --license mit", "none: expected a folder with one of"),
    ("lego.hub", "pull it", "it: expected a hub name"),
    ("llava.train.merge_lora", "--adapter {root}/none --out {root}/o", "no such folder"),
    ("vllm/scripts/convert_checkpoint.py", "{root}/none {root}/o --to hub", "no such folder"),
    ("vllm/scripts/merge_inference_results.py", "{root}/none --output {root}/o", "no such folder"),
    ("scripts/convert_checkpoint.py", "a b --to onnx --config c", "invalid choice"),
    (
        "scripts/convert_checkpoint.py",
        "{root}/none.ckpt b --to own --config {root}/generate.yaml",
        "no such weight file",
    ),
    (
        "scripts/generate_frame.py",
        "--image {root}/photo.jpg --action x --vllm {root} --ldm {root} "
        "--config {root}/generate.yaml inference.stps=3",
        "did you mean 'inference.steps'",
    ),
    ("scripts/generate_frame.py", "--image {root}/none.jpg --action x", "no such"),
    ("lego.frame", "--image {root}/none.jpg --action x --action y", "no such"),
    ("lego.demo", "--vllm {root}/none", "expected what --vllm names"),
    (
        "lego.demo",
        "--vllm {root} --ldm {root} --config {root}/generate.yaml inference.stps=3",
        "did you mean 'inference.steps'",
    ),
    ("metrics/all_metrics_in_one.py", f"{METRICS} ssim", "no metric 'ssim'"),
    (
        "metrics/all_metrics_in_one.py",
        f"{METRICS} psnr --edit_file {{root}}/none",
        "none",
    ),
    (
        "metrics/all_metrics_in_one.py",
        "--dataset ego4d --gen_path {root}/none --metrics psnr --edit_file {root}/ego4d_val.json "
        "--gt_path {root}/EgoGen/ego4d.fho/val_gt_for_metric",
        "none",
    ),
    ("metrics/compare.py", "{root}/none {root}/none", "no such folder"),
    ("egogen.curate", "{root} --name ego4d --out {root}/o.json", "--base-url, --model"),
    (
        "egogen.curate",
        "{root} --name ego4d --out {root}/o.json --base-url localhost:1 --model m",
        "--base-url: expected http",
    ),
    (
        "metrics/report.py",
        "--dataset ego4d --gen_path {root}/none --dataset-root {root}",
        "metric.json",
    ),
    ("metrics/study.py", "make {root}/a", "expected 2 to 9"),
    ("metrics/study.py", "make {root}/a {root}/b --dataset-root {root}", "in all of them"),
    ("metrics/study.py", "serve --study {root}", "key.json: no such file"),
    ("metrics/study.py", "count {root}/none.json --study {root}", "key.json: no such file"),
    ("metrics/copy_source.py", "--source-path s --edit_file {root}/none --out o", "no such file"),
    ("metrics/judge.py", "--gen_path g --source-path s --edit_file e", "--base-url and --model"),
    (
        "metrics/judge.py",
        "--gen_path {root}/none --source-path s --edit_file {root}/ego4d_val.json --model m "
        "--base-url http://localhost:1/v1",
        "no frame to judge",
    ),
    ("egogen.check", "{root}/none", "none"),
    ("egogen.build", "{root}/o --table {root}/none.csv --videos {root} --fps 10", "none.csv"),
    ("egogen.download", "pictures {root}/o", "no such group"),
    ("mini", "{root}/o --pairs 0", "at least 1"),
    ("mini/run.py", "huge", "invalid choice"),
    ("mini/run.py", "full --seed 1 --seeds 0 1", "not allowed with argument"),
    ("mini.swapped", "--actions {root}/none --text t --image i --out o", "no such file"),
    (
        "mini.oracle.score",
        "--dataset-root {root} --name ego4d --gen-path g --out o",
        "no such file",
    ),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """{case: [exit code, stderr, heavy modules]} of all cases, by one process."""
    root = write_dataset(tmp_path_factory.mktemp("inputs"))
    frame = next((root / "EgoGen/ego4d.fho/val").rglob("*.jpg"))
    (root / "photo.jpg").write_bytes(frame.read_bytes())
    lines = {"train": [], "generate": [f"data.metadata_path={root}/ego4d_metadata.json"]}
    for part, split in (("train", "train"), ("validation", "val")):
        write_features(root, "ego4d", split, root / "image" / split, root / "text" / split)
        lines["train"] += dataset_lines(root, split, f"data.params.{part}.params")
    lines["generate"] += dataset_lines(root, "val", "data.params")
    lines["train"].append(f"model.params.ckpt_path={root}/start.safetensors")
    for name, overrides in lines.items():
        (root / f"{name}.yaml").write_text(nested(overrides))
    cases = {f"{entry} --help": [entry, ["--help"]] for entry in ENTRIES}
    for entry, arguments, _ in REFUSED:
        words = [word.replace("{root}", str(root)) for word in arguments.split()]
        cases[f"{entry} {arguments}"] = [entry, words]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("entry_imports.py")],
        input=json.dumps(cases),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def dataset_lines(root: Path, split: str, place: str) -> list[str]:
    return [
        f"{place}.data_path={root}/EgoGen/ego4d.fho/{split}",
        f"{place}.edit_path={root}/ego4d_{split}.json",
        f"{place}.additional_cond_path.llava_image={root}/image/{split}",
        f"{place}.additional_cond_path.llava_text={root}/text/{split}",
    ]


def nested(overrides: list[str]) -> str:
    """A YAML file (JSON is one) with these values."""
    tree: dict = {"model": {"params": {"conditioner": {"feature_dim": 8}}}}
    for override in overrides:
        key, value = override.split("=", 1)
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return json.dumps(tree)


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_loads_nothing_heavy(ran, entry):
    code, error, heavy = ran[f"{entry} --help"]
    assert (code, heavy) == (0, []), error


@pytest.mark.parametrize("entry, arguments, said", REFUSED)
def test_refused_input_loads_nothing_heavy(ran, entry, arguments, said):
    code, error, heavy = ran[f"{entry} {arguments}"]
    lines = [line for line in error.splitlines() if "error: " in line]
    assert code == 2 and len(lines) == 1 and said in lines[0], error
    assert heavy == []
