"""One frame for one person: what does the action look like, done in this photograph?

    python scripts/generate_frame.py --image photo.jpg --action "pick up the mug" --out mug.jpg

Without --vllm, --ldm and --config the models of the quick start are used.
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT), str(PROJECT / "vllm")]

import argparse  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from egogen.atomic import write_json  # noqa: E402
from egogen.errors import EgoGenError, command_parser, run_command  # noqa: E402
from egogen.frames import read_rgb  # noqa: E402
from ldm.checkpoints import adapter_files  # noqa: E402
from ldm.config import GenerateConfig, load_config  # noqa: E402

QUICKSTART = PROJECT / "runs" / "quickstart"
DEFAULTS = {
    "vllm": QUICKSTART / "vllm",
    "ldm": QUICKSTART / "logs" / "description_image_text" / "checkpoints" / "last.ckpt",
    "config": PROJECT / "configs" / "generate_mini.yaml",
}
MAKE = "bash scripts/quickstart.sh"
SUFFIXES = (".jpg", ".jpeg", ".png")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--image", required=True, type=Path, help="photograph of any kind")
    add("--action", required=True, help="as in 'pick up the mug'")
    add("--vllm", type=Path, help="folder of the tuned stage 1")
    add("--ldm", type=Path, help="checkpoint of stage 2")
    add("--config", type=Path, help="YAML of stage 2, as configs/generate_*.yaml")
    add("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="adapters; repeatable")
    add("--out", type=Path, help="frame to write, .jpg or .png (default: PHOTO-frame.jpg here)")
    add("--seed", type=int, help="another seed, another frame (default: config's)")
    add("--temperature", type=float, default=0.2, help="of the description")
    add("--max-new-tokens", type=int, default=256, help="of the description")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where present)")
    add("overrides", nargs="*", help="dotted config keys, as inference.steps=50")
    return parser


def _model_path(given: Path | None, name: str) -> Path:
    path = given or DEFAULTS[name]
    if path.exists():
        return path
    hint = "" if given else f"; make the models of the quick start with: {MAKE}"
    raise EgoGenError(f"{path}: not there, expected what --{name} names{hint}")


def _out_path(out: Path | None, image: Path) -> Path:
    out = out or Path(f"{image.stem}-frame.jpg")
    if out.suffix.lower() not in SUFFIXES:
        raise EgoGenError(f"--out {out}: expected a name that ends in .jpg or .png")
    if out.resolve() == image.resolve():
        raise EgoGenError(f"--out {out}: is the photograph itself, expected another name")
    return out


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_intermixed_args(argv)
    out = _out_path(options.out, options.image)
    photo = read_rgb(options.image)
    paths = {name: _model_path(getattr(options, name), name) for name in DEFAULTS}
    if options.max_new_tokens < 1 or options.temperature < 0:
        raise EgoGenError("--max-new-tokens, --temperature: expected at least 1 and at least 0")
    overrides = [*options.overrides]
    overrides += [f"inference.seed={options.seed}"] if options.seed is not None else []
    config = load_config(GenerateConfig, [str(paths["config"])], overrides)
    config.loras += options.lora
    adapter_files(config.loras)

    # Slow to import: bad arguments are reported first.
    from egogen.devices import usable_device
    from ldm.images import write_image
    from lego.frame import check_photo, generate_frame
    from llava.describing.job import Decoding

    check_photo(photo, options.image)
    frame = generate_frame(
        photo,
        options.action,
        vllm=paths["vllm"],
        ldm=paths["ldm"],
        config=config,
        settings=Decoding(options.temperature, max_new_tokens=options.max_new_tokens),
        device=usable_device(options.device),
    )
    record = {
        "image": str(options.image),
        "action": frame.action,
        "description": frame.description,
        "seed": config.inference.seed,
        **{name: str(path) for name, path in paths.items()},
        "loras": config.loras,
        "overrides": list(options.overrides),
    }
    write_json(out.with_suffix(".json"), record)
    write_image(out, frame.image, config.inference.jpeg_quality)
    print(f"{frame.action}: {frame.description}")
    print(f"written: {out} ({frame.image.width}x{frame.image.height}), {out.stem}.json")
    return 0


if __name__ == "__main__":
    run_command(main)
