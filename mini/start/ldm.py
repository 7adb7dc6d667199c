"""Make what stage 2 starts from in the mini world, in place of Stable Diffusion v1.5."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from egogen import DATASETS, atomic_path, read_parser, run_command
from ldm.config import TrainConfig, load_config
from ldm.networks.architecture import build_autoencoder
from mini import COMMANDS
from mini.start import ldm_text_tower as text_tower
from mini.start.ldm_autoencoder import frame_paths, latent_scale, read_frames, train_autoencoder

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train_mini.yaml"


def main(argv: Sequence[str]) -> None:
    parser = read_parser(COMMANDS, "mini.start.ldm", __doc__, {"name": DATASETS}, name=[*DATASETS])
    args = parser.parse_args(argv)
    config = load_config(TrainConfig, [str(CONFIG)])
    params = config.model

    torch.manual_seed(args.seed)
    texts = list(text_tower.sample_texts(args.seed, 1500))
    tokenizer = text_tower.train_tokenizer(texts, 768)
    tower = text_tower.build_tower(tokenizer, params.unet.context_dim, layers=2, heads=4)
    right = text_tower.train_tower(tower, tokenizer, texts, args.text_steps, args.seed)
    print(f"text tower: {right:.1%} of the facts right")

    frames = read_frames(frame_paths(args.dataset_root, args.name), config.data.train.res)
    torch.manual_seed(args.seed)
    vae = build_autoencoder(params.autoencoder, params.scale_factor)
    psnr = train_autoencoder(
        vae, frames, steps=args.steps, batch_size=args.batch_size, peak=2e-3, seed=args.seed
    )
    print(f"autoencoder: {psnr:.2f} dB, scale_factor {latent_scale(vae, frames[:512]):.4f}")

    parts = {"vae": vae, "text_encoder": tower}
    state = {
        f"{part}.{name}": value.half().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }
    text_tower.save_tower(tower, tokenizer, args.out / "text_tower")
    with atomic_path(args.out / "start.safetensors") as temporary:
        save_file(state, temporary)
    print(f"{args.out / 'start.safetensors'}: {sum(v.numel() for v in state.values()):,} values")


if __name__ == "__main__":
    run_command(main)
