"""From labels to descriptions on a rendered dataset, without the renderer's own descriptions."""

from __future__ import annotations

import json

from chat_server import described, serving

from egogen import layout
from egogen.actions import DESCRIPTION_KEY, read_actions
from egogen.curate.__main__ import main as curate
from egogen.labels import QUERY
from llava.describing.results import result_file
from llava.eval.run_llava_in_loop import main as describe
from llava.train.train import main as tune
from mini.start.vllm import main as start
from mini.world.texts import parse_description
from mini.world.write import conversations_file, write_dataset

NAME = "ego4d"
TINY = "--vision-steps 2 --language-steps 4"


def words(*parts: object, **options: object) -> list[str]:
    named = (part for name, value in options.items() for part in (f"--{name}", value))
    return [str(part) for part in (*parts, *named)]


def test_from_labels_to_descriptions(tmp_path):
    root, curated = tmp_path / "data", tmp_path / "curated.json"
    request = {"seed": 3, "pairs": 9, "val_pairs": 3, "actions_per_clip": 3}
    write_dataset(root, {**request, "datasets": [NAME]})
    for split in layout.SPLITS:
        path = layout.action_file(root, NAME, split)
        content = json.loads(path.read_text())
        for actions in content.values():
            for fields in actions.values():
                del fields[DESCRIPTION_KEY]
        path.write_text(json.dumps(content))
    conversations_file(root, NAME).unlink()

    with serving() as server:
        line = words(root, "--name", NAME, "--base-url", server.url(), "--model", "m")
        assert curate([*line, "--out", str(curated)]) == 0
        questions = server.questions()
    answers = [row["conversations"][1]["value"] for row in json.loads(curated.read_text())]
    assert sorted(answers) == sorted(map(described, questions)) and len(answers) == 6
    boxes = json.loads(layout.metadata_file(root, NAME).read_text())
    entries = read_actions(layout.action_file(root, NAME, "train"))
    for entry, answer in zip(entries, answers, strict=True):
        thing = boxes[entry.clip]["actions"][entry.action_id]["object"]
        assert parse_description(answer)["object"] == thing

    conversations_file(root, NAME).write_bytes(curated.read_bytes())  # words of the tokenizer
    start(
        [*words("--dataset-root", root, "--name", NAME, "--out", tmp_path / "base"), *TINY.split()]
    )
    tune(
        words(
            model_name_or_path=tmp_path / "base",
            data_path=curated,
            image_folder=layout.frame_folder(root, NAME, "train"),
            output_dir=tmp_path / "tuned",
            max_steps=60,
            per_device_train_batch_size=6,
            learning_rate=5e-3,
            report_to="none",
            use_cpu=True,
        )
    )
    describe(
        words(
            "--model-path", tmp_path / "tuned", "--save-path", tmp_path / "chunks", "--query", QUERY
        )
        + words("--image-dir", layout.frame_folder(root, NAME, "val"), "--device", "cpu")
        + words("--action-label", layout.action_file(root, NAME, "val"), "--temperature", 0)
        + words("--max-new-tokens", 40)
    )
    results = json.loads(result_file(tmp_path / "chunks", 1).read_text())
    made = [fields["description"] for actions in results.values() for fields in actions.values()]
    assert len(made) == 3 and all(text.startswith("With the ") for text in made)
    assert all(parse_description(text)["hand"] for text in made)
