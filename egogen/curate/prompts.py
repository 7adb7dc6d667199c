"""What a model is asked about an action: system text and examples of a YAML file, label, boxes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egogen import ActionEntry, EgoGenError
from egogen.served import Message, message, shown

EXAMPLES = Path(__file__).with_name("examples.yaml")
Boxes = Mapping[str, list[float]]  # object -> left, top, right, bottom in percent of the frame


@dataclass(frozen=True)
class Prompt:
    """A question about one action; `phrase` is its label as stage 1 asks for it."""

    entry: ActionEntry
    phrase: str
    boxes: Boxes
    image: Path | None = None  # a frame to be sent

    @property
    def key(self) -> tuple[str, str]:
        """Entry and question, by which its answer is found again."""
        return self.entry.key, question(self.phrase, self.boxes)

    def message(self, complaint: str = "") -> Message:
        """`complaint`: what was wrong with the answer before."""
        again = f"\n(An earlier answer is of no use: it {complaint}. Describe the action anew.)"
        text = self.key[1] + (again if complaint else "")
        images = [shown(self.image)] if self.image else []
        return message(text, *images, form="JPEG", quality=90)


def question(phrase: str, boxes: Boxes) -> str:
    places = [f"{name} ({', '.join(f'{x:.0f}' for x in box)})" for name, box in boxes.items()]
    return f"Action: {phrase}" + (f"\nObjects: {', '.join(places)}" if places else "")


def read_examples(path: Path) -> list[Message]:
    """The messages before a question. Raises EgoGenError for what is not as the shipped file is."""
    import yaml

    where, row = str(path), None
    try:
        data = yaml.safe_load(path.read_bytes())
        messages = [{"role": "system", "content": data["system"].strip()}]
        for number, row in enumerate(data["examples"], 1):
            where = f"{path}: example {number}"
            asked = question(row.pop("action").strip(), row.pop("objects", {}))
            answer = {"role": "assistant", "content": row.pop("description").strip()}
            messages += [{"role": "user", "content": asked}, answer]
            if row or not answer["content"]:
                raise ValueError(f"also {', '.join(map(str, row))}" if row else "an empty text")
        if row is None:
            raise ValueError("no examples")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        found = " ".join(str(getattr(error, "strerror", None) or error).split())
        form = "'system', 'examples': action, description, objects {name: left, top, right, bottom}"
        raise EgoGenError(f"{where}: expected YAML of {form} ({found})") from None
    return messages


def boxes_of(metadata: dict[str, Any], entry: ActionEntry) -> Boxes:
    """Boxes in the source frame, of a metadata file's content: there a clip may have "actions".

    Those are {id: {"object", "bbox"}} or {id: lists of such}, with a "frame" each ("source" or
    "target"); a bbox is left, top, width, height in pixels of the clip's "width" and "height".
    """
    found: dict[str, list[float]] = {}
    try:
        clip = metadata.get(entry.clip) or {}
        rows = clip.get("actions", {}).get(entry.action_id) or []
        for row in [rows] if isinstance(rows, dict) else rows:
            (x, y, w, h), width, height = row["bbox"], clip["width"], clip["height"]
            box = [x / width, y / height, (x + w) / width, (y + h) / height]
            name = row["object"].partition("(")[0].replace("_", " ").strip()  # Ego4D: "tray_(tray)"
            if row.get("frame") not in ("target", "image_1"):
                found.setdefault(name, [100.0 * min(max(share, 0), 1) for share in box])
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        form = "'actions' {id: {'object': text, 'bbox': [x, y, w, h]}}, 'width', 'height'"
        raise EgoGenError(f"metadata of {entry.key}: expected {form}") from None
    return found
