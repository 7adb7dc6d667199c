"""Make what stage 2 starts from in the mini world, in place of Stable Diffusion v1.5."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from egogen import DATASETS, DESCRIPTION_KEY, SPLITS, atomic_path, read_parser, run_command
from egogen.actions import read_actions
from egogen.labels import clean_label
from egogen.layout import action_file, frame_folder
from ldm.checkpoints.released_names import UNET, released_names, released_shape
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.networks.architecture import build_autoencoder
from mini import COMMANDS
from mini.start import ldm_text_tower as text_tower
from mini.start.ldm_autoencoder import frame_paths, latent_scale, read_frames, train_autoencoder
from mini.start.ldm_unet import text_to_image, train_unet

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train_mini.yaml"


def targets(root: Path, datasets: Sequence[str]) -> tuple[list[Path], list[list[str]]]:
    """Target frames of both splits; of each the texts that it can be asked for by."""
    paths, texts = [], []
    for dataset, split in product(datasets, SPLITS):
        folder = frame_folder(root, dataset, split)
        for entry in read_actions(action_file(root, dataset, split), ("action", DESCRIPTION_KEY)):
            label, description = entry.texts["action"], entry.texts[DESCRIPTION_KEY]
            paths.append(folder / entry.image_1)
            texts.append([description, clean_label(label, dataset)])
    return paths, texts


def stable_diffusion_layout(model: LegoModel) -> dict[str, Tensor]:
    """Weights under the released names, half precision; the UNet without the source's channels."""
    names, state = released_names(model), {}
    for own, value in model.state_dict().items():
        state[names[own]] = value.reshape(released_shape(names[own], value.shape))
    first = UNET + model.denoiser.released_name(model.denoiser.first_weight)
    state[first] = state[first][:, : model.config.channels]
    return {name: value.half().contiguous() for name, value in state.items()}


def main(argv: Sequence[str]) -> None:
    parser = read_parser(COMMANDS, "mini.start.ldm", __doc__, {"name": DATASETS}, name=[*DATASETS])
    args = parser.parse_args(argv)
    config = load_config(TrainConfig, [str(CONFIG)])
    params = config.model

    torch.manual_seed(args.seed)
    sampled = list(text_tower.sample_texts(args.seed, 1500))
    tokenizer = text_tower.train_tokenizer(sampled, 768)
    tower = text_tower.build_tower(tokenizer, params.unet.context_dim, layers=2, heads=4)
    right = text_tower.train_tower(tower, tokenizer, sampled, args.text_steps, args.seed)
    print(f"text tower: {right:.1%} of the facts right")

    frames = read_frames(frame_paths(args.dataset_root, args.name), config.data.train.res)
    torch.manual_seed(args.seed)
    vae = build_autoencoder(params.autoencoder, params.scale_factor)
    psnr = train_autoencoder(
        vae, frames, steps=args.steps, batch_size=args.batch_size, peak=2e-3, seed=args.seed
    )
    scale = round(latent_scale(vae, frames[:512]), 3)
    print(f"autoencoder: {psnr:.2f} dB; the configs' scale_factor has to be {scale}")

    paths, texts = targets(args.dataset_root, args.name)
    torch.manual_seed(args.seed)
    model = text_to_image(replace(params, scale_factor=scale), vae, tower, tokenizer)
    frames = read_frames(paths, config.data.train.res)
    error = train_unet(model, frames, texts, args.unet_steps, args.seed)
    print(f"text to image: squared error of the latents {error:.4f}")

    state = stable_diffusion_layout(model)
    text_tower.save_tower(tower, tokenizer, args.out / "text_tower")
    with atomic_path(args.out / "start.safetensors") as temporary:
        save_file(state, temporary)
    print(f"{args.out / 'start.safetensors'}: {sum(v.numel() for v in state.values()):,} values")


if __name__ == "__main__":
    run_command(main)
