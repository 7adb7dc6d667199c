"""Stage 1's description against a plain loop of `generate`, on random weights.

    python bench/describe.py                              # CPU, one thread, a mid-size model
    python bench/describe.py --size 13b --device cuda     # the real size, half precision

Both sides describe the same images with the same prompts and as many greedy tokens, and keep the
same features. `plain` calls transformers' `generate` for one image after the other with
`output_hidden_states=True`, as the published runs did; `project` calls
`llava.describing.llava_describer`. Prints JSON: samples a second of each, and their ratio. On a CPU
the time is that of the process, on a GPU that of the clock.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT), str(PROJECT / "vllm")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPVisionConfig, LlamaConfig  # noqa: E402

from bench.measuring import seconds  # noqa: E402
from egogen.errors import command_parser, run_command  # noqa: E402
from egogen.labels import question  # noqa: E402
from llava.checkpoints.config import KNOWN_TOWERS  # noqa: E402
from llava.checkpoints.load import Loaded  # noqa: E402
from llava.conversation import TEMPLATES  # noqa: E402
from llava.describing.decoding import Decoding  # noqa: E402
from llava.describing.llava_describer import LlavaDescriber, prompt_ids  # noqa: E402
from llava.image_processing import ImageProcessor  # noqa: E402
from llava.model import Llava, build_config  # noqa: E402
from llava.tokens import expand  # noqa: E402

VOCABULARY = 32000
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES = {  # the language model's SHAPE; the vision tower is ViT-L/14 in all
    "mid": (1024, 2816, 12, 16),
    "13b": (5120, 13824, 40, 40),
}
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
    shape = dict(zip(SHAPE, SIZES[size], strict=True))
    text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **shape)
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
def plain(loaded: Loaded, image: Image.Image, text: str, tokens: int) -> tuple:
    """One `generate` call, as published: -> ids, text features (n, D), image features (P, D)."""
    model, kept = loaded.model, []
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    prompt = expand(prompt_ids(loaded, text), model.patches)
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        input_ids=ids,
        pixel_values=loaded.image_processor.batch([image]).to(model.device, model.dtype),
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        output_hidden_states=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    hook.remove()
    rows = torch.stack([step[-1][0, -1] for step in out.hidden_states])
    new = out.sequences[0, ids.shape[1] :].tolist()
    return new, rows.half().cpu().numpy(), kept[0][0].half().cpu().numpy()


def inputs(count: int) -> tuple[list[Image.Image], list[str]]:
    """Random images and the prompts about them."""
    values = np.random.default_rng(0).integers(0, 256, (count, 256, 455, 3), dtype=np.uint8)
    prompts = [question(ACTIONS[row % len(ACTIONS)]) for row in range(count)]
    return [Image.fromarray(value) for value in values], prompts


def run_plain(loaded: Loaded, args: argparse.Namespace) -> list[tuple]:
    pairs = zip(*inputs(args.samples), strict=True)
    return [plain(loaded, image, prompt, args.tokens) for image, prompt in pairs]


def run_project(loaded: Loaded, args: argparse.Namespace) -> list[tuple]:
    (images, prompts), found = inputs(args.samples), []
    settings = Decoding(temperature=0, max_new_tokens=args.tokens)
    describer = LlavaDescriber(loaded, settings)
    for first in range(0, args.samples, args.batch_size):
        rows = slice(first, first + args.batch_size)
        names = [("bench", str(row)) for row in range(args.samples)[rows]]
        made = describer.describe(images[rows], prompts[rows], seeds=[0] * len(names), names=names)
        found += [(one.ids, one.features["text"], one.features["image"]) for one in made]
    return found


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args(argv)
    device, results, found = torch.device(args.device), {}, {}
    cpu = device.type == "cpu"
    torch.set_num_threads(1)
    loaded = random_model(args.size, device, torch.float32 if cpu else torch.float16)
    for name, side in (("plain", run_plain), ("project", run_project)):
        side(loaded, argparse.Namespace(samples=1, batch_size=1, tokens=2))  # picks kernels
        made = found[name] = []
        taken = seconds(lambda: made.extend(side(loaded, args)), device)  # noqa: B023
        results[name] = {"seconds": taken, "samples_per_second": len(made) / taken}
    pairs = list(zip(found["plain"], found["project"], strict=True))
    report = {
        "model": args.size,
        "device": "cpu" if cpu else torch.cuda.get_device_name(device),
        **{name: getattr(args, name) for name in ("samples", "batch_size", "tokens")},
        **results,
        "same_tokens": float(np.mean([one[0] == other[0] for one, other in pairs])),
        "largest_image_feature_difference": float(
            max(np.abs(one[2].astype(np.float32) - other[2]).max() for one, other in pairs)
        ),
        "speedup": results["plain"]["seconds"] / results["project"]["seconds"],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_command(main)
