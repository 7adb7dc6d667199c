"""Train the latent diffusion model of stage 2: main.py, python -m ldm.training, lego-train."""

from collections.abc import Sequence
from pathlib import Path

from egogen import EgoGenError, read_parser, run_command
from egogen.settings import setting


def main(argv: Sequence[str]) -> None:
    commands = Path(__file__).parents[1] / "commands.toml"
    args = read_parser(commands, "ldm.training", __doc__).parse_intermixed_args(argv)
    if "/" in args.name or args.name in (".", ".."):
        raise EgoGenError(f"--name {args.name}: expected a plain name; --logdir chooses the folder")
    from ldm.config import TrainConfig, load_config, to_yaml
    from ldm.split import open_training

    config = load_config(TrainConfig, args.base, args.overrides)
    if not args.train:
        print(to_yaml(config), end="")
        return
    folder = (args.logdir or setting("LEGO_OUTPUT") / "logs") / args.name
    if not (folder / "finished.json").exists():  # nothing is read where nothing is to be done
        open_training(config)

    import torch  # slow to import: bad arguments and files are reported first

    from ldm.training.run import train

    gpus = args.gpus
    if gpus is None and torch.cuda.is_available():
        gpus = ",".join(map(str, range(torch.cuda.device_count())))
    train(config, folder, gpus, args.seed, args.resume)


if __name__ == "__main__":
    run_command(main)
