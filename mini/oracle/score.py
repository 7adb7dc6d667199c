"""Scores of a mini dataset: of generated frames by the oracle, or of descriptions by the truth."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from egogen import DESCRIPTION_KEY, inside, read_actions, read_json, read_parser, track, write_json
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.frames import read_rgb
from egogen.layout import DATASETS, SPLITS, action_file, frame_folder
from mini import COMMANDS
from mini.oracle.oracle import judge
from mini.oracle.reading import read_image
from mini.world.texts import parse_description
from mini.world.write import truth_file

FIGURES = ("psnr_changed", "psnr_copy", "psnr_gain")
FACTS = ("verb", "object", "hand", "target")


def read_truth(root: str | Path, dataset: str) -> dict[str, Any]:
    """clip -> {"scene", "actions": {id: {verb, object, hand, target, tool, where}}}."""
    path = truth_file(root, dataset)
    truth = read_json(path)
    if not isinstance(truth, dict) or not all(
        isinstance(clip, dict) and isinstance(clip.get("actions"), dict) for clip in truth.values()
    ):
        raise EgoGenError(f"{path}: expected clips with 'actions', as written by mini")
    return truth


def score_frame(
    source: Image.Image, target: Image.Image, generated: Image.Image, own: Mapping, others: Mapping
) -> dict[str, Any]:
    """One generated frame: was its own action done, which of the `others` (id -> action) were, and
    PSNR in the region that changes, against copying the source. Sizes may differ from the target's.
    """
    from metrics.measures.psnr import changed_region_scores  # slow to import

    before, now = read_image(source), read_image(generated)
    done, why = judge(before, now, own)
    scores = changed_region_scores(source, generated, target)
    return {
        "done": done,
        "why_not": why,
        "others_done": [name for name, action in others.items() if judge(before, now, action)[0]],
        "others": len(others),
        "psnr_changed": scores and scores.generated,
        "psnr_copy": scores and scores.copied,
        "psnr_gain": scores and scores.gain,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates and mean dB over the rows of `score_frame`, each with its "verb"."""
    others = sum(row["others"] for row in rows)
    done_others = sum(len(row["others_done"]) for row in rows)
    verbs: dict[str, list] = {}
    for row in rows:
        verbs.setdefault(row["verb"], []).append(row["done"])
    return {
        "count": len(rows),
        "done_rate": _mean(row["done"] for row in rows),
        "other_action_rate": done_others / others if others else None,
        **{name: _mean(row[name] for row in rows) for name in FIGURES},
        "by_verb": {
            verb: {"count": len(done), "done_rate": _mean(done)}
            for verb, done in sorted(verbs.items())
        },
    }


def score_folder(root: str | Path, dataset: str, split: str, gen_path: str | Path) -> dict:
    """Score GEN_PATH/<image_1> of a split; missing frames are named and left out."""
    folder, gen_path = frame_folder(root, dataset, split), Path(gen_path)
    truth = read_truth(root, dataset)
    entries = read_actions(action_file(root, dataset, split))
    rows, missing = [], []
    for entry in track(entries, len(entries), f"score {dataset} {split}", "frames"):
        generated = inside(gen_path, entry.image_1)
        if not generated.is_file():
            missing.append(entry.key)
            continue
        others = dict(truth.get(entry.clip, {}).get("actions", {}))
        if (own := others.pop(entry.action_id, None)) is None:
            where = f"{truth_file(root, dataset)}: no truth for entry {entry.key}"
            raise EgoGenError(f"{where}, expected one for each entry")
        images = entry.image_0, entry.image_1
        source, target = (read_rgb(inside(folder, image)) for image in images)
        row = score_frame(source, target, read_rgb(generated), own, others)
        facts = {name: own[name] for name in FACTS}
        rows.append({"clip": entry.clip, "action_id": entry.action_id, **facts, **row})
    if not rows:
        raise EgoGenError(
            f"{gen_path}: none of the {len(entries)} frames of {dataset} {split} is there, "
            f"expected <clip>/<action>/<frame>.jpg such as {entries[0].image_1}"
        )
    head = {"name": dataset, "split": split, **summary(rows), "missing": missing}
    return {**head, "rows": rows}


def score_descriptions(truth: Mapping, texts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Share of descriptions that state the right facts. `texts`: clip -> action id -> description.

    "target" is over actions that have one; "object_hand_target" and "all" (verb too) ask for
    everything at once. Raises EgoGenError for a text whose action the truth does not know.
    """
    rows = []
    for clip, actions in texts.items():
        for action_id, text in actions.items():
            if action_id not in truth.get(clip, {}).get("actions", {}):
                raise EgoGenError(f"description of {clip}/{action_id}: no such action in the truth")
            known, said = truth[clip]["actions"][action_id], parse_description(text)
            row = {name: said[name] == known[name] for name in FACTS}
            row["object_hand_target"] = row["object"] and row["hand"] and row["target"]
            row["all"] = row["object_hand_target"] and row["verb"]
            if known["target"] is None:
                row["target"] = None
            rows.append(row)
    names = (*FACTS, "object_hand_target", "all")
    return {"count": len(rows), **{name: _mean(row[name] for row in rows) for name in names}}


def main(argv: Sequence[str]) -> int:
    choices = {"name": DATASETS, "split": SPLITS}
    parser = read_parser(COMMANDS, "mini.oracle.score", __doc__, choices, key=DESCRIPTION_KEY)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gen-path", type=Path, help="frames in clip/action/frame folders")
    what.add_argument("--descriptions", type=Path, help="action file with descriptions")
    args = parser.parse_args(argv)
    if args.descriptions:
        texts: dict[str, dict[str, str]] = {}
        for entry in read_actions(args.descriptions, (args.key,)):
            texts.setdefault(entry.clip, {})[entry.action_id] = entry.texts[args.key]
        scores = score_descriptions(read_truth(args.dataset_root, args.name), texts)
        result = {"name": args.name, "file": str(args.descriptions), **scores}
        shown = ["count", *FACTS, "object_hand_target", "all"]
    else:
        result = score_folder(args.dataset_root, args.name, args.split, args.gen_path)
        shown = ["count", "done_rate", "other_action_rate", "psnr_changed", "psnr_copy"]
    if args.out:
        write_json(args.out, result)
    for name in shown:
        print(f"{name}: none" if result[name] is None else f"{name}: {result[name]:.4g}")
    if result.get("psnr_gain") is not None:
        print(f"psnr_gain: {result['psnr_gain']:+.2f} dB in the changed region, against copying")
    if result.get("missing"):
        print(f"missing: {len(result['missing'])} frames, the first is {result['missing'][0]}")
    return EXIT_INCOMPLETE if result.get("missing") else 0


if __name__ == "__main__":
    run_command(main)
