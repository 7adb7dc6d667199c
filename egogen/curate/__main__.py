"""Conversations to tune stage 1 on: `python -m egogen.curate ROOT --name ego4d --out FILE ...`."""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from egogen import read_json, read_object, served, stable_seed, write_json
from egogen.actions import DESCRIPTION_KEY, ActionEntry, conversation, inside, read_actions
from egogen.curate.answers import flaw, named_by, said
from egogen.curate.prompts import EXAMPLES, Prompt, boxes_of, read_examples
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, run_command
from egogen.flags import COMMANDS, add_flags, read_parser
from egogen.labels import clean_label, question
from egogen.layout import DATASETS, SPLITS, action_file, frame_folder, metadata_file
from egogen.served import TRIES, Server

Answers = dict[str, tuple[str, str]]  # entry -> text, and what is wrong with it


def parse(argv: Sequence[str]) -> argparse.Namespace:
    about = "Let a language model describe actions, and write stage 1's conversations."
    choices = {"name": DATASETS, "split": SPLITS}
    parser = read_parser(COMMANDS, "egogen.curate", about, choices, examples=EXAMPLES)
    add_flags(parser, COMMANDS, "server")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    served.check_arguments(args, "limit")
    if args.key in ("image_0", "image_1", "action"):
        raise EgoGenError("--key: expected a key that is not taken")
    if not (args.dry_run or args.out and (args.from_column or args.base_url and args.model)):
        raise EgoGenError("expected --dry-run, or --out and --base-url, --model or --from-column")
    taken = [action_file(args.root, args.name, args.split), metadata_file(args.root, args.name)]
    for path in filter(None, (args.examples, args.out, args.actions_output)):
        if path.is_dir() or path.resolve() in [other.resolve() for other in taken]:
            raise EgoGenError(f"{path}: is a folder or in use here, expected another file")
        taken.append(path)
    return args


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    path = action_file(args.root, args.name, args.split)
    entries = read_actions(path)[: args.limit]
    prompts = make_prompts(args, entries)
    asked = [prompt for prompt in prompts if prompt.phrase]
    failures = [f"entry {p.entry.key}: its label names no action" for p in prompts if not p.phrase]
    if args.dry_run:
        return show(args, asked)
    if args.from_column:
        answers = own_texts(path, args.from_column, asked)
    else:
        answers, unanswered = curate(args, asked)
        failures += unanswered
    rows, data = [], read_json(path)
    for number, prompt in enumerate(prompts):
        entry, (text, problem) = prompt.entry, answers.get(prompt.entry.key, ("", "is missing"))
        if not problem:
            name, query = f"{args.name}_{number:06d}", question(prompt.phrase)
            rows.append(conversation(name, entry.image_0, query, text))
            data[entry.clip][entry.action_id][args.key] = text
        elif entry.key in answers:
            failures.append(f"entry {entry.key}: its text {problem}: {text[:80]!r}")
    for output, content in ((args.out, rows), (args.actions_output, data)):
        if output and rows:
            write_json(output, content)
    for failure in failures:
        print(f"not curated: {failure}", file=sys.stderr)
    print(f"{args.out}: {len(rows)} of {len(entries)} actions")
    return EXIT_INCOMPLETE if failures else 0


def make_prompts(args: argparse.Namespace, entries: Sequence[ActionEntry]) -> list[Prompt]:
    """A prompt an entry; its phrase is empty where the label names no action."""
    metadata = read_object(metadata_file(args.root, args.name), "an object of clips", needed=False)
    frames = frame_folder(args.root, args.name, args.split)
    phrases = [clean_label(" ".join(entry.label.split()), args.name) for entry in entries]
    boxes = [boxes_of(metadata, entry) for entry in entries]
    images = [inside(frames, entry.image_0) if args.images else None for entry in entries]
    return [*map(Prompt, entries, phrases, boxes, images)]


def own_texts(path: Path, key: str, prompts: Sequence[Prompt]) -> Answers:
    """Descriptions that the action file has under `key`. Raises EgoGenError where it has none."""
    entries = [prompt.entry for prompt in prompts]
    if key == "description" and not any(key in entry.texts for entry in entries):
        key = DESCRIPTION_KEY  # what a table's column of that name becomes
    texts = {entry.key: " ".join(entry.texts.get(key, "").split()) for entry in entries}
    if not any(texts.values()):
        raise EgoGenError(f"{path}: no entry has a text {key!r}")
    return {name: (text, flaw(text)) for name, text in texts.items()}


def show(args: argparse.Namespace, prompts: Sequence[Prompt]) -> int:
    """The first prompts, and an estimate of what all will take."""
    examples = read_examples(args.examples)
    asked = [{"role": "user", "content": prompt.key[1]} for prompt in prompts]
    print(json.dumps([*examples, *asked[:3]], indent=2, ensure_ascii=False))
    given, answer = (sum(len(m["content"]) for m in part) for part in (examples, examples[2::2]))
    read = sum(given + len(message["content"]) for message in asked) // 4
    written = len(asked) * answer // (len(examples) // 2) // 4
    print(f"{len(asked)} requests; an estimate: {read} tokens to read, {written} to write", end="")
    print(f", and {len(asked)} images" if args.images else "")
    return 0


def curate(args: argparse.Namespace, prompts: Sequence[Prompt]) -> tuple[Answers, list[str]]:
    """Ask what has not been answered yet -> (answers, a line for each question without one)."""
    examples = read_examples(args.examples)
    names = ("name", "split", "model", "images", "request", "seed")
    made_by = {name: getattr(args, name) for name in names}
    made_by["examples"] = hashlib.sha256(json.dumps(examples).encode()).hexdigest()

    async def describe(server: Server, prompt: Prompt) -> tuple[str, str]:
        """The first good answer, else the last and what is wrong with it; ValueError for none."""
        text = problem = ""
        for number in range(TRIES):
            asked = [*examples, await asyncio.to_thread(prompt.message, problem)]
            own = stable_seed(args.seed, prompt.entry.clip, prompt.entry.action_id, number) % 2**31
            try:
                fields = {"temperature": 0, "max_tokens": 512, "seed": own}
                text, problem = said(await server.reply(asked, fields))
                problem = problem or flaw(text, named_by(prompt.phrase, prompt.boxes))
                if not problem:
                    break
            except ValueError:
                if number == TRIES - 1:
                    raise
        return text, problem

    asked, doing = {prompt.key: prompt for prompt in prompts}, ("curating", "actions")
    answers, failures = served.ask_all(args, args.out, made_by, asked, describe, *doing)
    return {entry: answer for (entry, _), answer in answers.items()}, failures


if __name__ == "__main__":
    run_command(main)
