"""Outputs of the frozen encoders, computed once: latent moments of both frames and text embeddings.

`python -m ldm.cache` makes them. A cache is a folder `<out>/<train|validation>` of shards and a
`cache.json` that says what it belongs to: the entries, their texts and frames, the encoders'
weights and the resolution. Training (config key data.params.cache_path) refuses a cache of anything
else. A killed run continues.

Letters: n entries, B batch, H W size of the squeezed frames, c latent channels, h w latent size, C
context width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from egogen import EgoGenError, Progress, check_provenance, floor_chunk, record_provenance
from egogen.atomic import read_object, write_bytes
from ldm.images import read_pixels
from ldm.model import FROZEN_PARTS, LegoModel
from ldm.split import Located, Split

SHARD, SHARD_FILE = 512, "shard_{:05d}.safetensors"  # entries a file, its name


def identity(split: Split, model: LegoModel, dtype: str) -> dict:
    """What a cache depends on; frames are known by path, size and time of change."""
    entries, weights = hashlib.sha256(), hashlib.sha256()
    for item in split.items:
        entry = item.entry
        entries.update(repr((entry.key, split.prompt(item))).encode())
        for name, path in ((entry.image_0, item.source), (entry.image_1, item.target)):
            if not path.is_file():
                raise EgoGenError(f"{path}: no such image (entry {entry.key})")
            stat = path.stat()
            entries.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
    for part in FROZEN_PARTS:
        for name, value in getattr(model, part).state_dict().items():
            weights.update(f"{part}.{name}".encode())
            weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "entries": len(split.items),
        "content": entries.hexdigest(),
        "encoders": weights.hexdigest(),
        "resolution": split.data.res,
        "both_flips": bool(split.data.flip_prob > 0),
        "dtype": dtype,
    }


def _complete(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


@torch.no_grad()
def encode_shard(
    model: LegoModel, split: Split, items: Sequence[Located], flips: bool, batch_size: int
) -> dict[str, Tensor]:
    """-> source, edited (n, F, 2c, h, w) with F = 2 for both flips, prompt (n, 77, C)."""
    parts: dict[str, list[Tensor]] = {"source": [], "edited": [], "prompt": []}
    for first in range(0, len(items), batch_size):
        group = items[first : first + batch_size]
        paths = {"source": [i.source for i in group], "edited": [i.target for i in group]}
        for name in paths:
            pixels = torch.stack([read_pixels(path, split.data.res) for path in paths[name]])
            pixels = pixels.to(model.device)  # (B, 3, H, W)
            both = [model.encode_moments(pixels)]
            both += [model.encode_moments(pixels.flip(-1))] if flips else []
            parts[name].append(torch.stack(both, dim=1).cpu())
        texts = [split.prompt(item) for item in group]
        parts["prompt"].append(model.encode_text(texts).cpu())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def write_cache(
    folder: Path, model: LegoModel, split: Split, dtype: str, batch_size: int, chunk: tuple
) -> None:
    """Make or finish one chunk (of shards) of the cache of one split; `chunk`: (how many, which).

    Shards that are there and complete are kept. Chunks may be made at the same time.
    """
    items, made_from = split.items, identity(split, model, dtype)
    info = folder / "cache.json"
    check_provenance(info, made_from)
    numbers = floor_chunk(range(-(-len(items) // SHARD)), *chunk)
    groups = {number: items[number * SHARD : (number + 1) * SHARD] for number in numbers}
    with Progress(sum(map(len, groups.values())), f"cache {folder.name}", "entries") as progress:
        for number, group in groups.items():
            path = folder / SHARD_FILE.format(number)
            if not _complete(path):
                tensors = encode_shard(model, split, group, made_from["both_flips"], batch_size)
                tensors = {n: t.to(getattr(torch, dtype)).contiguous() for n, t in tensors.items()}
                record_provenance(info, made_from)
                write_bytes(path, save(tensors))
            progress.update(len(group))


class EncoderCache:
    """Reads a finished cache; raises EgoGenError when it belongs to something else."""

    def __init__(self, folder: Path, split: Split, model: LegoModel):
        info = folder / "cache.json"
        if not info.exists():
            raise EgoGenError(f"{folder}: holds no cache; make it with python -m ldm.cache")
        check_provenance(info, identity(split, model, str(read_object(info).get("dtype"))))
        for number in range(-(-len(split.items) // SHARD)):
            path = folder / SHARD_FILE.format(number)
            if not _complete(path):
                raise EgoGenError(
                    f"{path}: missing or cut short; run python -m ldm.cache again (all chunks)"
                )
        self.folder, self.shards = folder, {}  # of files that stay mapped, not read

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "shards": {}}  # loader workers map the files anew

    def read(self, index: int, flip: bool) -> dict[str, Tensor]:
        """-> source, edited moments (2c, h, w) and prompt (77, C), float32."""
        number, row = divmod(index, SHARD)
        if number not in self.shards:
            self.shards[number] = safe_open(self.folder / SHARD_FILE.format(number), "pt")
        shard = self.shards[number]
        found = {"prompt": shard.get_slice("prompt")[row].float()}
        for name in ("source", "edited"):
            found[name] = shard.get_slice(name)[row, int(flip)].float()
        return found
