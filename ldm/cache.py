"""Compute the outputs of the frozen encoders once, for training (`ldm.training.encoder_cache`)."""

from collections.abc import Sequence
from pathlib import Path

from egogen import EgoGenError, read_parser, run_command
from ldm.config import TrainConfig, load_config
from ldm.split import open_training


def main(argv: Sequence[str]) -> None:
    parser = read_parser(Path(__file__).with_name("commands.toml"), "ldm.cache", __doc__)
    args = parser.parse_intermixed_args(argv)
    if args.batch_size < 1:
        raise EgoGenError(f"--batch-size {args.batch_size}: expected at least 1")
    config = load_config(TrainConfig, args.config, args.overrides)
    out = args.out or config.data.cache_path
    if not out:
        raise EgoGenError("--out is not given, and the config has no data.params.cache_path")
    splits = open_training(config)

    # Slow to import: bad arguments and files are reported first.
    from egogen.devices import usable_device
    from ldm.checkpoints.load import load_start
    from ldm.model import LegoModel
    from ldm.training.encoder_cache import write_cache

    device = usable_device(args.device)
    model = LegoModel(config.model)
    load_start(model, config.model.ckpt_path)
    model.to(device).eval()
    chunk = args.n_chunk, args.chunk_idx
    for part, split in splits.items():
        write_cache(Path(out) / part, model, split, args.dtype, args.batch_size, chunk)
    print(f"{out}: chunk {args.chunk_idx} of {args.n_chunk} finished")


if __name__ == "__main__":
    run_command(main)
