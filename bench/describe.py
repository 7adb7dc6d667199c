"""Stage 1's description against transformers' own `generate`, on random weights."""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT), str(PROJECT / "vllm")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration  # noqa: E402

from bench.measuring import COMMANDS, peak_bytes, seconds  # noqa: E402
from egogen import read_command, read_parser, run_command  # noqa: E402
from egogen.devices import usable_device  # noqa: E402
from egogen.labels import question  # noqa: E402
from llava.checkpoints.config import KNOWN_TOWERS  # noqa: E402
from llava.checkpoints.load import Loaded  # noqa: E402
from llava.conversation import TEMPLATES  # noqa: E402
from llava.describing.decoding import Decoding  # noqa: E402
from llava.describing.llava_describer import LlavaDescriber, prompt_ids  # noqa: E402
from llava.image_processing import ImageProcessor  # noqa: E402
from llava.model import Llava, build_config  # noqa: E402
from llava.tokens import IMAGE_ID, expand, padded  # noqa: E402

VOCABULARY, IMAGE_PIECE = 32000, 2  # transformers' own model has a piece that stands for images
ALONE = 4  # samples of the side that takes longest
SIZES = read_command(COMMANDS, "describe")["sizes"]
ACTIONS = ("pick up the mug", "cut the onion", "open the drawer of the cupboard", "wash the pan")


class SteadyTokenizer:
    """Ids for any text, about as many as Llama's tokenizer has (one for four letters)."""

    bos_id, eos_id, pad_id = 1, -1, 0  # no id ends a text: both sides write the same number

    def encode(self, text: str) -> list[int]:
        pieces = [text[first : first + 4] for first in range(0, len(text), 4)]
        return [3 + zlib.crc32(piece.encode()) % (VOCABULARY - 3) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def __len__(self) -> int:
        return VOCABULARY


def random_model(size: str, device: torch.device, dtype: torch.dtype) -> Loaded:
    text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **SIZES[size])
    config = build_config(text, CLIPVisionConfig(**KNOWN_TOWERS["openai/clip-vit-large-patch14"]))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Llava(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    processor = ImageProcessor(224, "square")
    return Loaded(model, SteadyTokenizer(), processor, TEMPLATES["llama_2"], Path("random"))


@torch.inference_mode()
def generate(model: Any, loaded: Loaded, tokens: int, images: list, texts: list) -> list[tuple]:
    """One `generate` call -> ids, text features (n, D), image features (P, D) of each image."""
    prompts = [expand(prompt_ids(loaded, text), loaded.model.patches) for text in texts]
    ids = padded(prompts, 0, "left").to(model.device)  # (B, S); no prompt holds a 0
    pixels = loaded.image_processor.batch(images).to(model.device, model.dtype)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0}
    options |= {"min_new_tokens": tokens, "output_hidden_states": True}
    options |= {"return_dict_in_generate": True}
    options |= {"attention_mask": (ids != 0).long(), "pixel_values": pixels}
    out = model.generate(ids.where(ids != IMAGE_ID, IMAGE_PIECE), **options)
    # A step's states are those of all layers and, at first, of all positions: these are not kept.
    rows = torch.stack([step[-1][:, -1] for step in out.hidden_states], dim=1)  # (B, n, D)
    features = (rows.half().cpu().numpy(), model.projected.half().cpu().numpy())
    return list(zip(out.sequences[:, ids.shape[1] :].tolist(), *features, strict=True))


def project(describer: LlavaDescriber, images: list, texts: list) -> list[tuple]:
    """The same by this project."""
    names = [("bench", str(row)) for row in range(len(images))]
    made = describer.describe(images, texts, seeds=[0] * len(images), names=names)
    return [(one.ids, one.features["text"], one.features["image"]) for one in made]


def run(side: Callable[[list, list], list[tuple]], samples: int, batch_size: int) -> list[tuple]:
    """What a side makes of random images and prompts about them, batch by batch."""
    values = np.random.default_rng(0).integers(0, 256, (samples, 256, 455, 3), dtype=np.uint8)
    pairs = [
        (Image.fromarray(v), question(a)) for v, a in zip(values, cycle(ACTIONS), strict=False)
    ]
    batches = (pairs[first : first + batch_size] for first in range(0, samples, batch_size))
    return [one for batch in batches for one in side(*zip(*batch, strict=True))]


def measure(loaded: Loaded, args: argparse.Namespace, device: torch.device) -> dict:
    """Samples a second and memory of each side, and how much they agree."""
    with torch.device("meta"):
        same = LlavaForConditionalGeneration(loaded.model.config).eval()
    same.model, same.lm_head = loaded.model.model, loaded.model.lm_head  # the same weights
    same.config.image_token_id = IMAGE_PIECE
    keep = lambda module, inputs, output: setattr(same, "projected", output)  # noqa: E731
    same.model.multi_modal_projector.register_forward_hook(keep)
    own = partial(generate, same, loaded, args.tokens)
    describer = LlavaDescriber(loaded, Decoding(temperature=0, max_new_tokens=args.tokens))
    batched = args.samples, args.batch_size
    sides = {"alone": (own, min(args.samples, ALONE), 1), "generate": (own, *batched)}
    sides["project"] = (partial(project, describer), *batched)
    for side, _, _ in sides.values():
        run(side, 1, 1)  # picks kernels
    found: dict[str, list[tuple]] = {}
    rates, peaks = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    for name, asked in [*sides.items()] * args.repeats:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = seconds(lambda: found.update({name: run(*asked)}), device)  # noqa: B023
        rates[name] = max(rates[name], asked[1] / taken)
        peaks[name] = peak_bytes(device) / 2**30
    pairs = list(zip(found["generate"], found["project"], strict=True))
    images = [np.abs(one[2].astype(np.float32) - other[2]).max() for one, other in pairs]
    return {
        "samples_per_second": rates,
        "peak_gib": peaks if device.type == "cuda" else None,
        "same_tokens": float(np.mean([one[0] == other[0] for one, other in pairs])),
        "largest_image_feature_difference": float(max(images)),
        "speedup": rates["project"] / rates["alone"],
        "speedup_over_batched_generate": rates["project"] / rates["generate"],
    }


def main(argv: Sequence[str]) -> None:
    args = read_parser(COMMANDS, "describe", __doc__, {"size": SIZES}).parse_args(argv)
    device, dtype = usable_device(args.device), torch.float32
    torch.set_num_threads(1)
    if device.type == "cuda":
        dtype, args.device = torch.float16, torch.cuda.get_device_name(device)
    loaded = random_model(args.size, device, dtype)
    print(json.dumps(vars(args) | measure(loaded, args, device), indent=2))


if __name__ == "__main__":
    run_command(main)
