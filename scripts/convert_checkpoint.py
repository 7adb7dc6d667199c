"""Convert a checkpoint of stage 2; names in the source give away its form.

what each form holds:
  released   .ckpt for the released code: all live weights, the UNet's EMA with its count of
             updates, the noise schedule. The released code has no place for an EMA of the
             conditioner: where there is one it stands in the conditioner's place, as the released
             code generates with that, and the live conditioner stands under "live.", which it
             ignores.
  own        .ckpt of this project: all live weights and the EMA of whatever was trained, with
             its count of updates. The noise schedule stands in the config.
  diffusers  folder for ldm.pipeline.LegoPipeline: the EMA (live weights where there is none) as
             the plain files, live weights of what has an EMA as the variant "non_ema", the
             tokenizer, the noise schedule as the scheduler's config.
Converted to and fro, every weight comes back bit for bit. Optimizer and learning rate are in none
of them: training starts from a converted file (model.params.ckpt_path), it does not continue.
Adapters, those in a last.ckpt and those of --lora, become part of the weights.

example:
  python scripts/convert_checkpoint.py --config configs/generate_ego4d.yaml --to diffusers \\
      ego4d_diffusion_with_vllm_feature.ckpt lego_ego4d
"""

import sys
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from collections.abc import Sequence  # noqa: E402

from egogen.download.hub import local_path  # noqa: E402
from egogen.errors import EgoGenError, run_command  # noqa: E402
from egogen.flags import read_parser  # noqa: E402
from ldm.checkpoints import FORMS, adapter_files  # noqa: E402
from ldm.config import load_model_params  # noqa: E402


def main(argv: Sequence[str]) -> int:
    commands = Path(__file__).with_name("commands.toml")
    parser = read_parser(commands, "convert_checkpoint", __doc__, {"to": FORMS})
    options = parser.parse_intermixed_args(argv)
    params = load_model_params(options.config, options.overrides)
    adapter_files(options.lora)
    if not Path(source := local_path(options.source)).exists():
        raise EgoGenError(f"{source}: no such weight file")

    from ldm.checkpoints.convert import convert  # slow to import

    print("\n".join(convert(source, options.target, options.to, params, options.lora)))
    return 0


if __name__ == "__main__":
    run_command(main)
