"""Tune the language model and the projector on conversations; the vision tower stays frozen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import wait_for_everyone
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import is_flash_attn_2_available

from egogen import EgoGenError, lock, read_object, run_command, track, write_json
from egogen.download.hub import local_path
from llava.checkpoints.fields import is_llava
from llava.checkpoints.hub_model import HubModel
from llava.checkpoints.load import Loaded, load_model, with_tools
from llava.conversation import find_template
from llava.train.adapters import ADAPTER_FOLDER, add_adapters, merge, write_origin
from llava.train.arguments import Flags, TuningArguments, parse
from llava.train.data import TuningData, read_conversations
from llava.train.hub_tuning import HubData, prepare_hub
from llava.train.parallel import is_first
from llava.train.saving import newest_complete, publish, staging_folder
from llava.train.trainer import Tuner

SETTINGS_FILE, FINISHED_FILE = "tuning_settings.json", "finished.json"
RELEASED_VERSIONS = {"llava_llama_2": "llama_2", "llava_v1": "vicuna_v1", "v1": "vicuna_v1"}


def settings_of(flags: Flags) -> dict[str, Any]:
    """What decides the result: a folder that was begun with other settings is refused."""
    names = (
        "num_train_epochs max_steps learning_rate warmup_steps weight_decay max_grad_norm seed "
        "lr_rule model_max_length bf16 fp16 average_tokens_across_devices"
    )
    tuning, data = flags.tuning, flags.data
    chosen = {name: getattr(tuning, name) for name in names.split()}
    chosen["lr_scheduler_type"] = str(getattr(tuning.lr_scheduler_type, "value", ""))
    chosen |= {"step_samples": tuning.step_samples, "model": data.model_name_or_path}
    chosen |= {"version": data.version, "data": data.data_path}
    chosen |= {n: getattr(data, n) for n in ("image_aspect_ratio", "image_size", "cut_rule")}
    return {**chosen, "lora": vars(flags.lora) if flags.lora.lora_enable else None}


def check_output(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the finished result of these settings."""
    path = folder / SETTINGS_FILE
    begun = read_object(path, needed=False)
    other = [name for name in settings if name in begun and begun[name] != settings[name]]
    if other:
        were = ", ".join(f"{name} {begun[name]!r}" for name in other)
        advice = "choose another --output_dir, or remove it"
        raise EgoGenError(f"{path}: this folder was begun with other settings ({were}); {advice}")
    return (folder / FINISHED_FILE).exists()


def weights_dtype(flags: Flags) -> torch.dtype:
    """Float32 where an optimizer works on the loaded weights themselves; half precision where
    DeepSpeed keeps its own float32 copy, and for frozen weights under adapters.
    """
    tuning = flags.tuning
    if (tuning.bf16 or tuning.fp16) and (tuning.deepspeed or flags.lora.lora_enable):
        return torch.bfloat16 if tuning.bf16 else torch.float16
    return torch.float32


def prepare(flags: Flags) -> Loaded | HubModel:
    """The pretrained model with its tools; only language model and projector learn."""
    name, tuning = local_path(flags.data.model_name_or_path), flags.tuning
    options: dict[str, Any] = {"quantization": None, "device_map": None}
    if flags.lora.bits != 16:
        options = {"quantization": f"{flags.lora.bits}bit", "device_map": {"": tuning.device}}
    flash = (tuning.bf16 or tuning.fp16) and is_flash_attn_2_available()
    fastest = "flash_attention_2" if flash else "sdpa"
    options["attn"] = fastest if flags.data.attn == "auto" else flags.data.attn
    dtype = weights_dtype(flags)
    if not is_llava(name):
        if flags.data.version and is_first():
            print(f"--version {flags.data.version}: left out, {name} has its own chat template")
        return prepare_hub(flags, dtype=str(dtype), **options)
    model = load_model(name, dtype=dtype, vision_tower=flags.data.vision_tower, **options)
    size = model.config.vision_config.image_size
    if flags.data.image_size not in (None, size):
        raise EgoGenError(f"--image_size {flags.data.image_size}: {name} has one size, {size}")
    if flags.data.version:
        template = RELEASED_VERSIONS.get(flags.data.version, flags.data.version)
        find_template(template, "--version")
        model.config.conversation_template = template
    if flags.data.image_aspect_ratio:
        model.config.image_aspect_ratio = flags.data.image_aspect_ratio
    model.model.vision_tower.requires_grad_(False)
    return with_tools(model, name)


def make_data(flags: Flags, loaded: Loaded | HubModel, conversations: list[Any]) -> dict[str, Any]:
    make: Any = HubData if isinstance(loaded, HubModel) else TuningData
    options = {"max_length": flags.tuning.model_max_length, "cache": flags.data.image_cache}
    options["cut_expanded"] = flags.data.cut_rule == "expanded"
    shown = track(conversations, len(conversations), "read", "conversations")
    data = make(shown if is_first() else conversations, flags.data.image_folder, loaded, **options)
    if data.dropped and is_first():
        print(f"{flags.data.data_path}: {data.dropped} conversations left without a target")
    return {"train_dataset": data, "data_collator": data.collate, "compute_loss_func": data.loss}


def tune(trainer: Tuner, tuning: TuningArguments) -> None:
    """All steps, from the newest complete checkpoint on."""
    start = newest_complete(Path(tuning.output_dir), tuning.engine, tuning.world_size)
    try:
        trainer.train(resume_from_checkpoint=start)
    except EgoGenError as error:  # of a data worker it comes with the worker's traceback in front
        raise EgoGenError(str(error).strip().rpartition("EgoGenError: ")[2]) from None
    trainer.stop.raise_if_stopped(Path(tuning.output_dir), trainer.state.global_step)


def save(trainer: Tuner, loaded: Loaded | HubModel, flags: Flags) -> None:
    """The result in the output folder; with adapters also that of merging them."""
    output = Path(flags.tuning.output_dir)
    place = output / ADAPTER_FOLDER if flags.lora.lora_enable else output
    staging = place / ".half"
    loaded.model.__dict__.pop("save_pretrained", None)  # that of checkpoints
    if is_first():
        staging_folder(place)
    wait_for_everyone()
    trainer.save_model(str(staging))  # all processes take part where they share the weights
    wait_for_everyone()
    if not is_first():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing needs
    if flags.lora.lora_enable:
        write_origin(staging, flags.data, loaded)
    else:
        loaded.save_tools(staging)
    publish(staging)
    trainer.save_state()
    if flags.lora.lora_enable:
        unset_hf_deepspeed_config()  # each process loads a complete model again, for itself
        merge(place, output, dtype=weights_dtype(flags))


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse(argv)
    output = Path(flags.tuning.output_dir)
    settings = settings_of(flags)
    if check_output(output, settings):
        print(f"{output}: tuning is finished, nothing to do")
        return
    flags.tuning.settings = settings
    conversations = read_conversations(flags.data.data_path)  # before a large model is loaded
    set_seed(flags.tuning.seed)
    loaded = prepare(flags)
    parts = make_data(flags, loaded, conversations)
    model: Any = loaded.model
    if flags.lora.lora_enable:
        set_seed(flags.tuning.seed)  # adapters start the same however the model was loaded
        model = add_adapters(loaded, flags.data.model_name_or_path, flags.lora)
    trainer = Tuner(loaded, model, args=flags.tuning, **parts)
    with lock(output / ".lock", "tuning", needed=is_first()):
        if is_first():
            write_json(output / SETTINGS_FILE, settings)
        tune(trainer, flags.tuning)
        save(trainer, loaded, flags)
        if is_first():
            write_json(output / FINISHED_FILE, {"steps": trainer.state.global_step, **settings})
            print(f"{output}: tuned for {trainer.state.global_step} steps")
    PartialState().destroy_process_group()  # else ended now and then by threads of the group


if __name__ == "__main__":
    run_command(main)
