"""Captions a second, against one image at a time as the released script has it; prints JSON.

    python bench/captions.py                                    # BLIP-B and BLIP-L, on the CPU
    python bench/captions.py --images 64 --batch-size 32 --device cuda

Captions are what takes the released script longest. Both sides run the same full-size network with
random weights. The loop: one image, the library's unfused attention, and the image's keys and
values anew for every word piece and beam. Time is processor time of one thread on the CPU and wall
time on CUDA.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from bench.measuring import COMMANDS, seconds  # noqa: E402
from egogen.devices import usable_device  # noqa: E402
from egogen.errors import run_command  # noqa: E402
from egogen.flags import read_parser  # noqa: E402
from metrics.measures.captions import RULES, SIDE, SIZES, Captioner  # noqa: E402
from metrics.networks.beam_search import beam_search  # noqa: E402

PROMPT = [30522, 1037, 3861, 1997]  # pieces of "a picture of", behind BLIP's first one


def plain(network: torch.nn.Module, pieces: torch.Tensor, *, past_key_values, **more):
    """As in the released code: keys and values of the image come anew for every piece."""
    cache = EncoderDecoderCache(past_key_values.self_attention_cache, DynamicCache())
    return network(pieces, past_key_values=cache, **more)


@torch.inference_mode()
def measure(kind: str, count: int, batch_size: int, device: torch.device) -> dict:
    torch.manual_seed(0)
    network = Captioner(kind).eval().to(device)
    tower, decoder = network.visual_encoder, network.text_decoder
    tower.init_weights()
    images = torch.randn(count, 3, SIDE, SIDE, device=device)
    sides = {"loop": (False, 1, partial(plain, decoder)), "batched": (True, batch_size, decoder)}
    captions: dict[str, list] = {side: [] for side in sides}

    def run(side: str) -> None:
        fused, size, step = sides[side]
        for block in tower.blocks:
            block.attn.fused_attn = fused
        for batch in images.split(size):
            captions[side] += beam_search(step, tower(batch), PROMPT, RULES)

    beam_search(decoder, tower(images[:1]), PROMPT, RULES)  # warms up
    taken = {side: seconds(partial(run, side), device) for side in sides}
    same = [a[1] == b[1] for a, b in zip(captions["loop"], captions["batched"], strict=True)]
    return {
        **{f"{side}_images_per_second": count / time for side, time in taken.items()},
        "same_captions": sum(same) / count,
        "ratio": taken["loop"] / taken["batched"],
    }


def main(argv: Sequence[str]) -> None:
    parser = read_parser(COMMANDS, "captions", __doc__, {"kinds": SIZES}, kinds=[*SIZES])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = options.images, options.batch_size, usable_device(options.device)
    result = {name: str(value) for name, value in vars(options).items()}
    print(json.dumps(result | {kind: measure(kind, *settings) for kind in options.kinds}, indent=1))


if __name__ == "__main__":
    run_command(main)
