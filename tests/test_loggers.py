"""What TensorBoard and W&B are told: the values of the log, at the same steps, and the settings."""

import json
import sys
from pathlib import Path

import pytest
from pytorch_lightning.loggers import wandb as lightning_wandb
from small_training import CONFIG, train_run, write_run
from small_tuning import flags, write_inputs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ldm.config import TrainConfig, load_config
from ldm.file_layout import file_values
from llava.train.train import main as tune


@pytest.fixture(scope="module")
def run_overrides(tmp_path_factory):
    """Two micro-batches a step, so that steps and micro-batches are counted apart."""
    more = "lightning.trainer.accumulate_grad_batches=2", "lightning.trainer.max_steps=4"
    return [*write_run(tmp_path_factory.mktemp("logged")), *more, "lightning.log_every=2"]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(found: EventAccumulator) -> dict[tuple[str, int], float]:
    return {(tag, e.step): e.value for tag in found.Tags()["scalars"] for e in found.Scalars(tag)}


def logged(folder: Path) -> dict[tuple[str, int], float]:
    """metrics.jsonl as {(name, step): value}."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(n, r["step"]): value for r in records for n, value in r.items() if n != "step"}


def assert_known(found: dict, log: Path) -> None:
    expected = logged(log)
    assert {"loss", "lr", "samples_per_s", "val_loss"} <= {name for name, _ in expected}
    assert {step for _, step in expected} == {2, 4}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def test_stage_2_in_tensorboard(run_overrides, tmp_path):
    overrides = [*run_overrides, "lightning.logger=tensorboard"]
    folder = train_run(overrides, tmp_path, "a")
    found = events(folder)
    assert_known(scalars(found), folder)
    start = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(start).session_start_info.hparams
    config = load_config(TrainConfig, [str(CONFIG)], overrides)
    assert set(hparams) == set(file_values(config))
    assert hparams["data.params.batch_size"].number_value == 2
    assert hparams["lightning.logger"].string_value == "tensorboard"


def test_a_continued_run_goes_on_in_the_same_steps(run_overrides, tmp_path):
    overrides = [*run_overrides, "lightning.logger=tensorboard"]
    train_run([*overrides, "lightning.trainer.max_steps=2"], tmp_path, "a")
    folder = train_run(overrides, tmp_path, "a")
    assert_known(scalars(events(folder)), folder)


def test_no_logger_writes_no_events(run_overrides, tmp_path):
    folder = train_run([*run_overrides, "lightning.logger=none"], tmp_path, "a")
    assert logged(folder) and not list(folder.rglob("events*"))


STAND_IN = '''
"""As much of W&B as is called: what it is told goes to a file."""
import json
from pathlib import Path

class Run:
    def __init__(self, **options):
        self.config, self.name, self.id = self, options["name"], options["id"]
        self.path = Path(options["dir"]) / "told.jsonl"
        self.tell(init={name: str(value) for name, value in options.items()})
    def tell(self, **what):
        with open(self.path, "a") as file:
            file.write(json.dumps(what, default=str) + "\\n")
    def update(self, values, **_):
        self.tell(config=dict(values))
    def log(self, values, **_):
        self.tell(log=dict(values))
    def define_metric(self, *names, **options):
        self.tell(metric=names[0])
    def project_name(self):
        return "p"

run = None
Image = lambda image, **_: "image"
def init(**options):
    global run
    run = Run(**options)
    return run
'''


def test_stage_2_in_wandb(run_overrides, tmp_path, monkeypatch):
    """The library is not asked for: a stand-in for it takes down what it is told."""
    place = tmp_path / "library" / "wandb"
    (place / "sdk" / "lib").mkdir(parents=True)
    (place / "__init__.py").write_text(STAND_IN)
    (place / "wandb_run.py").write_text("from wandb import Run\n")
    (place / "sdk" / "__init__.py").write_text("")
    (place / "sdk" / "lib" / "__init__.py").write_text("class RunDisabled: pass\n")
    monkeypatch.syspath_prepend(str(place.parent))
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    overrides = [*run_overrides, "lightning.logger=wandb"]
    try:
        folder = train_run(overrides, tmp_path, "a")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
            del sys.modules[name]
    told = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    values = [record["log"] for record in told if "log" in record]
    found = {
        (name, record["trainer/global_step"]): value
        for record in values
        for name, value in record.items()
        if name not in ("trainer/global_step", "samples")
    }
    assert_known(found, folder)
    (config,) = [record["config"] for record in told if "config" in record]
    assert config["data.params.batch_size"] == 2
    assert told[0]["init"]["id"] == (folder / "wandb_id").read_text()


def test_stage_1_in_tensorboard(tmp_path, monkeypatch):
    """The Trainer's own callback; its log is trainer_state.json."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    paths = write_inputs(tmp_path / "inputs")
    named = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    small = flags(
        report_to="tensorboard", logging_steps=2, per_device_train_batch_size=2, save_steps=4
    )
    tune([*named, "--output_dir", str(tmp_path / "out"), "--use_cpu", "True", *small])
    found = events(tmp_path / "events")
    values = scalars(found)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    records = [record for record in history if "loss" in record]
    assert [record["step"] for record in records] == [2, 4]
    for record in records:
        for name in ("loss", "learning_rate", "samples_per_s"):
            assert values[f"train/{name}", record["step"]] == pytest.approx(record[name], rel=1e-6)
        assert record["samples_per_s"] > 0
    (written,) = found.Tensors("args/text_summary")
    settings = json.loads(written.tensor_proto.string_val[0])
    assert settings["learning_rate"] == 1e-3 and settings["step_samples"] == 4
    assert settings["data"] == str(paths["data_path"])
