"""Make what stage 2 starts from in the mini world, in place of Stable Diffusion v1.5."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from egogen import DATASETS, atomic_path, read_parser, run_command
from ldm.checkpoints.released_names import UNET, released_names, released_shape
from ldm.config import TrainConfig, load_config
from ldm.model import LegoModel
from ldm.networks.architecture import build_autoencoder
from mini import COMMANDS
from mini.start import ldm_text_tower as text_tower
from mini.start.ldm_autoencoder import latent_scale, read_frames, told_frames, train_autoencoder
from mini.start.ldm_unet import text_to_image, train_unet

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train_mini.yaml"


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

    told = told_frames(args.dataset_root, args.name)
    frames = read_frames([*told], config.data.train.res)
    torch.manual_seed(args.seed)
    vae = build_autoencoder(params.autoencoder, params.scale_factor)
    psnr = train_autoencoder(
        vae, frames, steps=args.steps, batch_size=args.batch_size, peak=2e-3, seed=args.seed
    )
    scale = round(latent_scale(vae, frames[:512]), 3)
    print(f"autoencoder: {psnr:.2f} dB; the configs' scale_factor has to be {scale}")

    torch.manual_seed(args.seed)
    model = text_to_image(replace(params, scale_factor=scale), vae, tower, tokenizer)
    asked = torch.tensor([bool(texts) for texts in told.values()])
    texts = [texts for texts in told.values() if texts]
    error = train_unet(model, frames[asked], texts, args.unet_steps, args.seed)
    print(f"text to image: squared error of the latents {error:.4f}")

    state = stable_diffusion_layout(model)
    text_tower.save_tower(tower, tokenizer, args.out / "text_tower")
    with atomic_path(args.out / "start.safetensors") as temporary:
        save_file(state, temporary)
    print(f"{args.out / 'start.safetensors'}: {sum(v.numel() for v in state.values()):,} values")


if __name__ == "__main__":
    run_command(main)
