"""A frame for one person: what does the action look like, done in this photograph?"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from egogen.atomic import write_json
from egogen.download.hub import local_path
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.flags import read_parser
from egogen.frames import read_rgb
from ldm.checkpoints import adapter_files
from ldm.config import GenerateConfig, load_config

PROJECT = Path(__file__).resolve().parents[1]
QUICKSTART = PROJECT / "runs" / "quickstart"
DEFAULTS = {
    "vllm": QUICKSTART / "vllm",
    "ldm": QUICKSTART / "logs" / "description_image_text" / "checkpoints" / "last.ckpt",
    "config": PROJECT / "configs" / "generate_mini.yaml",
}
SUFFIXES = (".jpg", ".jpeg", ".png")


def model_path(given: str | os.PathLike | None, name: str) -> str:
    """Where --`name` is, of a hub name in the cache. Raises EgoGenError where nothing is."""
    path = local_path(given or DEFAULTS[name])
    if os.path.exists(path):
        return path
    hint = "" if given else "; make the models of the quick start with: bash scripts/quickstart.sh"
    raise EgoGenError(f"{path}: not there, expected what --{name} names{hint}")


def _out_paths(out: Path | None, image: Path, count: int) -> list[Path]:
    """Where the frames go: `out` for one, `out` with -1, -2 ... before the suffix for several."""
    out = out or Path(f"{image.stem}-frame.jpg")
    if out.suffix.lower() not in SUFFIXES:
        raise EgoGenError(f"--out {out}: expected a name that ends in .jpg or .png")
    numbered = [out.with_stem(f"{out.stem}-{k}") for k in range(1, count + 1)]
    outs = numbered if count > 1 else [out]
    if clash := [path for path in outs if path.resolve() == image.resolve()]:
        raise EgoGenError(f"--out {clash[0]}: is the photograph itself, expected another name")
    return outs


def main(argv: Sequence[str]) -> int:
    parser = read_parser(Path(__file__).with_name("commands.toml"), "frame", __doc__)
    options = parser.parse_intermixed_args(argv)
    outs = _out_paths(options.out, options.image, len(options.action))
    photo = read_rgb(options.image)
    paths = {name: model_path(getattr(options, name), name) for name in DEFAULTS}
    if options.max_new_tokens < 1 or options.temperature < 0:
        raise EgoGenError("--max-new-tokens, --temperature: expected at least 1 and at least 0")
    overrides = [*options.overrides]
    overrides += [f"inference.seed={options.seed}"] if options.seed is not None else []
    config = load_config(GenerateConfig, [paths["config"]], overrides)
    config.loras += options.lora
    adapter_files(config.loras)

    if find_spec("llava") is None:  # a checkout that is not installed
        sys.path.append(str(PROJECT / "vllm"))
    # Slow to import: bad arguments are reported first.
    from egogen.devices import usable_device
    from lego.stages import Stages, check_photo, verb_phrase
    from llava.describing.job import Decoding

    check_photo(photo, options.image)
    actions = [verb_phrase(action) for action in options.action]
    settings = Decoding(options.temperature, max_new_tokens=options.max_new_tokens)
    models = paths["vllm"], paths["ldm"], config, settings, usable_device(options.device)
    stages = Stages(*models, keep=len(actions) > 1)
    record: dict = {name: str(getattr(options, name) or paths[name]) for name in paths}
    record = {"image": str(options.image), **record, "loras": config.loras}
    record |= {"overrides": list(options.overrides)}
    return _chain(stages, photo, actions, outs, record)


def _chain(stages, photo, actions: Sequence[str], outs: Sequence[Path], record: dict) -> int:
    """Write a frame, and `record` with what it was made from, for each action -> the exit code.

    A frame is made from the one before as it is in memory, before JPEG. Its record names a seed and
    a source by which the command makes it alone. The first failure is raised; a later one, which
    leaves the frames before it, is told.
    """
    from ldm.images import write_image

    config, source, written = stages.config.inference, record["image"], []
    try:
        for number, (action, out) in enumerate(zip(actions, outs, strict=True)):
            seed = config.seed + number
            (frame,) = stages.frames([photo], [action], seed=seed)
            made = {"source": source, "action": frame.action, "description": frame.description}
            write_json(out.with_suffix(".json"), record | made | {"seed": seed})
            write_image(out, frame.image, config.jpeg_quality)
            print(f"{frame.action}: {frame.description}", flush=True)
            size = f"{frame.image.width}x{frame.image.height}"
            written.append(f"written: {out} ({size}), {out.stem}.json")
            photo, source = frame.image, str(out)
    except EgoGenError as error:
        if not written:
            raise
        where = f"action {len(written) + 1} of {len(actions)}, {action[:80]!r}"
        print(f"not generated: {where}: {error}", file=sys.stderr)
        return EXIT_INCOMPLETE
    finally:
        for line in written:
            print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
