"""A folder with the part of BERT's vocabulary that the golden texts use, every piece at its id."""

from __future__ import annotations

import json
import re
from pathlib import Path

from golden_weights import DATA

SIZE = 30522
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
# Words of the golden texts that are cut into several pieces.
CUT = {
    "wearer": ("wear", "##er"),
    "grasps": ("grasp", "##s"),
    "stirs": ("stir", "##s"),
    "screwdriver": ("screw", "##drive", "##r"),
    "squeezes": ("squeeze", "##s"),
    "wipes": ("wipe", "##s"),
    "worktop": ("work", "##top"),
    "carrots": ("carrot", "##s"),
}
# Of the prompt, the golden captions and the long text; none occurs in the other texts.
OTHERS = {"picture": 3861, "##bl": 16558, "tab": 21628, "##ھ": 29844, "soup": 11350}


def pieces() -> dict[str, int]:
    """Piece -> id, read off the golden texts and their ids."""
    found = {**SPECIAL, **OTHERS}
    for entry in json.loads((DATA / "text.json").read_text())["cosine"].values():
        for name in ("description", "caption"):
            words = re.findall(r"\w+|[^\w\s]", entry[name].lower())
            cut = [piece for word in words for piece in CUT.get(word, (word,))]
            for piece, number in zip(cut, entry[f"{name}_ids"][1:-1], strict=True):
                assert found.setdefault(piece, number) == number, piece
    return found


def write_vocabulary(folder: Path) -> Path:
    """`folder` with vocab.txt: known pieces in their lines, unused ones in all others."""
    lines = [f"[unused{number}]" for number in range(SIZE)]
    for piece, number in pieces().items():
        lines[number] = piece
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
