"""Make the features of texts that are already there, by one teacher-forced pass a batch."""

from collections.abc import Sequence
from pathlib import Path

from egogen import DESCRIPTION_KEY, EgoGenError, read_actions, read_json, run_command
from llava.describing.job import Job
from llava.eval import arguments as shared

RESULT_KEY = "description"  # the field of the description loop's own results


def read_texts(path: Path, action_label: Path, key: str | None) -> dict[tuple[str, str], str]:
    """(clip, action) -> description of every entry of the action file.

    Raises EgoGenError when one has none under `key` (None: where either kind of file has it).
    """
    data = read_json(path)
    texts: dict[tuple[str, str], str] = {}
    missing = []
    keys = [key] if key else [DESCRIPTION_KEY, RESULT_KEY]
    for entry in read_actions(action_label):
        fields = data
        for name in (entry.clip, entry.action_id):
            fields = fields.get(name, {}) if isinstance(fields, dict) else {}
        found = [fields[k] for k in keys if isinstance(fields, dict) and fields.get(k)]
        if found and isinstance(found[0], str) and found[0].strip():
            texts[entry.clip, entry.action_id] = found[0]
        else:
            missing.append(entry.key)
    if missing:
        count = f"{len(missing)} of {len(missing) + len(texts)} entries of {action_label}"
        lacking = f"have no text under {' or '.join(keys)}, first {missing[0]}"
        raise EgoGenError(f"{path}: {count} {lacking}")
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    args = shared.read_shared("llava.eval.make_features", __doc__).parse_args(argv)
    if not (args.save_image_feature_path or args.save_text_feature_path):
        raise EgoGenError("nothing to make: expected --save-image-feature-path or the one for text")
    action_label = args.action_label or args.descriptions
    texts = read_texts(args.descriptions, action_label, args.key)
    job = Job(**shared.job_fields(args, action_label), seed=None)
    shared.check_inputs(args, job)

    # Slow to import: bad arguments and files are reported first.
    from llava.describing.loop import run
    from llava.describing.texts import given_texts

    return run(job, shared.describer_asked(args), given_texts(texts))


if __name__ == "__main__":
    run_command(main)
