"""A small Qwen2.5-VL with random weights; its sizes, tokens and chat template are a hub folder."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from egogen.atomic import as_umask_says, read_object
from llava.checkpoints.hub_model import FRAMES_FILE, HubModel
from llava.image_processing import ImageProcessor
from llava.tokens import IGNORE, Encoded
from mini.start.vllm_llava import VOCABULARY

FOLDER = Path(__file__).parents[2] / "configs" / "mini" / "qwen2_5_vl"
ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)
AS_IT_IS = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "pt"}


class QwenBase:
    """Pretraining's view of the model, member by member that of `LlavaBase`.

    A row of the image is `unit` patches, whose vectors stand in it side by side until the merger.
    """

    def __init__(self, texts: Sequence[str], folder: Path):
        processor = AutoProcessor.from_pretrained(FOLDER)
        train = processor.tokenizer.train_new_from_iterator
        processor.tokenizer = train(sorted(set(texts)), VOCABULARY, show_progress=False)
        self.model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(FOLDER))
        self.model.generation_config = GenerationConfig.from_pretrained(FOLDER)
        self.frames = ImageProcessor(*read_object(FOLDER / FRAMES_FILE).values())
        self.hub = HubModel(self.model, processor, self.frames, str(folder))
        visual = self.model.model.visual
        self.tower = nn.ModuleList([visual.patch_embed, visual.blocks])
        self.projector, self.unit = visual.merger, visual.spatial_merge_unit
        self.grid = self.frames.size // visual.patch_size // visual.spatial_merge_size
        self.pad_id = self.hub.pad_id

    def word(self, word: str) -> list[int]:
        return self.hub.processor.tokenizer(f" {word}")["input_ids"]

    def see(self, pixels: Tensor) -> Tensor:
        inputs = self.hub.processor.image_processor(list(pixels), **AS_IT_IS)
        visual, grids = self.model.model.visual, inputs["image_grid_thw"]
        states = visual(inputs["pixel_values"], grid_thw=grids).last_hidden_state
        return states.reshape(len(pixels), self.grid**2, -1)

    def project(self, seen: Tensor) -> Tensor:
        return self.projector(seen.unflatten(-1, (self.unit, -1))).view(*seen.shape[:2], -1)

    def encode(self, turns: Sequence[str], patches: int) -> Encoded:
        mark = self.hub.processor.image_token
        text = self.hub.render(turns, True).replace(mark, mark * patches)
        encoded = self.hub.processor.tokenizer(text)
        labels = [IGNORE] * len(encoded["input_ids"])
        for answer in ANSWER.finditer(text):
            first, last = map(encoded.char_to_token, (answer.start(), answer.end() - 1))
            labels[first : last + 1] = encoded["input_ids"][first : last + 1]
        return Encoded(encoded["input_ids"], labels)

    def loss(self, batch: dict[str, Tensor], seen: Tensor, places: Tensor) -> Tensor:
        """Patches have the positions that they have in a complete image."""
        ids, count = batch["input_ids"], places.shape[1]  # (B, T)
        of_image = ids == self.hub.image_id
        embeds = self.model.get_input_embeddings()(ids)  # (B, T, D)
        embeds = embeds.masked_scatter(of_image[..., None], self.project(seen))
        first = int(of_image[0].int().argmax())
        positions = torch.arange(ids.shape[1]).repeat(3, len(ids), 1)  # (3, B, T)
        positions[..., first + count :] += self.grid - count
        within = torch.stack([0 * places, places // self.grid, places % self.grid])  # (3, B, n)
        positions[..., first : first + count] = first + within
        labels = batch["labels"]  # padded on the right: causal attention never looks there
        return self.model(inputs_embeds=embeds, position_ids=positions, labels=labels).loss

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.hub.save_tools(folder)
        as_umask_says(folder)
