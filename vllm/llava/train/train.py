"""Tune the language model and the projector on conversations; the vision tower stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from egogen.atomic import read_json, write_json
from egogen.errors import EgoGenError, run_command
from llava.checkpoint import Loaded, load_model, save_tools, with_tools
from llava.conversation import TEMPLATES
from llava.data import Collator, TuningData, read_conversations
from llava.train.arguments import DataArguments, ModelArguments, TuningArguments, parse
from llava.train.trainer import Tuner, newest_whole_checkpoint

SETTINGS_FILE, FINISHED_FILE = "tuning_settings.json", "finished.json"
RELEASED_VERSIONS = {"llava_llama_2": "llama_2", "llava_v1": "vicuna_v1", "v1": "vicuna_v1"}


def settings_of(model: ModelArguments, data: DataArguments, tuning: TuningArguments) -> dict:
    """What decides the result: a folder that was begun with other settings is refused."""
    names = (
        "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
        "learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm seed lr_rule "
        "model_max_length"
    )
    chosen = {name: getattr(tuning, name) for name in names.split()}
    chosen["lr_scheduler_type"] = str(getattr(tuning.lr_scheduler_type, "value", ""))
    chosen |= {
        "model": model.model_name_or_path,
        "version": model.version,
        "data": data.data_path,
        "image_aspect_ratio": data.image_aspect_ratio,
        "cut_rule": data.cut_rule,
    }
    return chosen


def check_output(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the finished result of these settings."""
    path = folder / SETTINGS_FILE
    if path.exists() and read_json(path) != settings:
        raise EgoGenError(
            f"{path}: this folder was begun with other settings; choose another --output_dir, or "
            "remove it"
        )
    return (folder / FINISHED_FILE).exists()


def prepare(model_args: ModelArguments, data_args: DataArguments) -> Loaded:
    """The pretrained model in float32 with its tools; only language model and projector learn."""
    model = load_model(
        model_args.model_name_or_path, attn=model_args.attn, vision_tower=model_args.vision_tower
    )
    if model_args.version:
        name = RELEASED_VERSIONS.get(model_args.version, model_args.version)
        if name not in TEMPLATES:
            raise EgoGenError(f"--version {name!r}: expected one of {', '.join(TEMPLATES)}")
        model.config.conversation_template = name
    if data_args.image_aspect_ratio:
        model.config.image_aspect_ratio = data_args.image_aspect_ratio
    model.model.vision_tower.requires_grad_(False)
    return with_tools(model, model_args.model_name_or_path)


def main(argv: Sequence[str] | None = None) -> None:
    model_args, data_args, tuning = parse(argv)
    output = Path(tuning.output_dir)
    settings = settings_of(model_args, data_args, tuning)
    if check_output(output, settings):
        print(f"{output}: tuning is finished, nothing to do")
        return
    set_seed(tuning.seed)
    loaded = prepare(model_args, data_args)
    data = TuningData(
        read_conversations(data_args.data_path),
        data_args.image_folder,
        loaded.template,
        loaded.tokenizer,
        loaded.image_processor,
        patches=loaded.model.patches,
        max_length=tuning.model_max_length,
        cut_expanded=data_args.cut_rule == "expanded",
        cache=data_args.image_cache,
    )
    if tuning.process_index == 0:
        write_json(output / SETTINGS_FILE, settings)
        if data.dropped:
            print(f"{data_args.data_path}: {data.dropped} conversations left without a target")
    trainer = Tuner(
        loaded, args=tuning, train_dataset=data, data_collator=Collator(loaded.tokenizer.pad_id)
    )
    trainer.train(resume_from_checkpoint=newest_whole_checkpoint(output))
    trainer.save_model(str(output))
    trainer.save_state()
    if trainer.is_world_process_zero():
        save_tools(loaded, output)
        write_json(output / FINISHED_FILE, {"steps": trainer.state.global_step, **settings})
        print(f"{output}: tuned for {trainer.state.global_step} steps")


if __name__ == "__main__":
    run_command(main)
