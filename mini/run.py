"""Both stages on a mini dataset, from rendering to the report, as the commands that a user types.

    python mini/run.py quick                      # what scripts/quickstart.sh calls
    python mini/run.py full --seed 1 --out runs/full1
    python mini/run.py ablation --out runs/full0  # the paper's ablation on that run's data
    python mini/run.py quick --base qwen2_5_vl    # stage 1 of another class of models

A step that has been done, and whose files nobody has touched, is not done again; one that was
stopped in the middle goes on where it was (the commands see to that).
"""

import hashlib
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT)]

from egogen.actions import DESCRIPTION_KEY  # noqa: E402
from egogen.atomic import read_json, write_json  # noqa: E402
from egogen.errors import EgoGenError, command_parser, run_command  # noqa: E402

NAME = "ego4d"
QUERY = "How does the person properly {} that is displayed in the video frame?"
BATCH = ("--batch-size", "64", "--max-new-tokens", "77")


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: pairs of the dataset, flags of stage 1, steps of stage 2."""

    pairs: int
    val_pairs: int
    train_steps: int
    base: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    both: tuple[str, ...] = ()  # overrides of both configs of stage 2
    train: tuple[str, ...] = ()  # overrides of the training config


PRESETS = {
    "quick": Preset(pairs=1800, val_pairs=150, train_steps=1200),
    "full": Preset(
        pairs=2400,
        val_pairs=240,
        train_steps=3200,
        tune=("--num_train_epochs", "7"),
        train=("model.base_learning_rate=1e-3",),  # the context comes into use sooner
    ),
    "tiny": Preset(  # for the tests: everything runs, nothing is learnt
        pairs=24,
        val_pairs=3,
        train_steps=2,
        base=("--vision-steps", "2", "--language-steps", "2"),
        tune=("--num_train_epochs", "1", "--logging_steps", "1"),
        both=("inference.steps=2",),
        train=("data.params.batch_size=4", "lightning.log_every=1"),
    ),
}
BASES = {  # of stage 1: overrides of both configs of stage 2
    "llava": (),
    "qwen2_5_vl": ("model.params.conditioner.features.image.rows=144",),
}
VARIANTS = {  # the paper's ablation: conditioning variant, and the text that is the prompt
    "label": ("none", "action"),
    "description": ("none", DESCRIPTION_KEY),
    "description_image": ("image", DESCRIPTION_KEY),
    "description_text": ("text", DESCRIPTION_KEY),
    "description_image_text": ("both", DESCRIPTION_KEY),
}
FULL_VARIANT = "description_image_text"
LEGEND = """\
done: share of frames where the oracle finds the action done; other: where it is
found done in the frame of another action of the same clip, made from the same
source; PSNR and gain over copying, dB, in the region that the action changes"""


@dataclass
class Run:
    """Where a run's files are."""

    out: Path
    preset: Preset
    seed: int
    base: str = "llava"
    before: str = ""  # key of the last step

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def frames(self) -> Path:
        return self.data / "EgoGen" / "ego4d.fho"

    def labels(self, split: str) -> Path:
        return self.data / f"{NAME}_{split}.json"

    def described(self, split: str) -> Path:
        return self.out / "described" / f"{NAME}_{split}.json"

    def step(self, name: str, outputs: Sequence[Path], *commands: Sequence[object]) -> None:
        """Run the commands, side by side when there are several, unless that has been done.

        The commands resume by themselves, yet starting twenty of them to find nothing to do takes
        minutes. So steps.json keeps a key a step, of its commands, of the files that it left and of
        the step before: what follows a step done anew is done anew.
        """
        lines = [[str(word) for word in command] for command in commands]
        stamps = self.out / "steps.json"
        done = read_json(stamps) if stamps.exists() else {}
        if done.get(name) != key(self.before, lines, outputs):
            print(f"\n== {name}", *("   $ " + shown(line) for line in lines), sep="\n", flush=True)
            begun = time.monotonic()
            run_commands(name, lines)
            done[name] = key(self.before, lines, outputs)
            write_json(stamps, done)
            print(f"   {name}: {time.monotonic() - begun:.0f} s", flush=True)
        self.before = done[name]


def shown(line: Sequence[str]) -> str:
    """The command as one would type it in the project's folder."""
    words = ["python" if word == sys.executable else word for word in line]
    return shlex.join(word.replace(f"{PROJECT}/", "") for word in words)


def key(before: str, lines: Sequence[Sequence[str]], outputs: Sequence[Path]) -> str:
    """A digest of a step: `before`, its command lines, and name, size and time of change of all
    files that are under `outputs`.
    """
    found: list[object] = [before, lines]
    for output in outputs:
        for path in [output, *sorted(output.rglob("*"))] if output.is_dir() else [output]:
            if path.is_file():
                stat = path.stat()
                found.append([str(path), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def run_commands(name: str, lines: Sequence[Sequence[str]]) -> None:
    paths = f"{PROJECT}:{PROJECT / 'vllm'}"
    environment = os.environ | {"PYTHONPATH": paths, "PYTHON": sys.executable}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if len(lines) > 1:  # one core each: threads of several processes would wait for each other
        environment["OMP_NUM_THREADS"] = "1"
    running = [subprocess.Popen(line, cwd=PROJECT, env=environment) for line in lines]
    try:
        codes = [process.wait() for process in running]
    except BaseException:
        for process in running:
            process.terminate()
        raise
    if any(codes):
        raise EgoGenError(f"step '{name}' failed, see above; the same command continues from here")


def python(*words: object) -> list[object]:
    return [sys.executable, *words]


def chunks(*words: object, flags: tuple[str, str], count: int = 2) -> list[list[object]]:
    """The command once per chunk."""
    return [python(*words, flags[0], count, flags[1], k) for k in range(1, count + 1)]


def stage_1(run: Run) -> None:
    data, out, preset = run.data, run.out, run.preset
    made = python("-m", "mini", data, "--pairs", preset.pairs, "--seed", run.seed)
    made += ["--val-pairs", preset.val_pairs]
    run.step("dataset", [data], [*made, "--datasets", NAME, "--workers", 2])
    base = python("-m", "mini.start.vllm", "--dataset-root", data, "--name", NAME)
    base += ["--out", out / "vllm_base", "--seed", run.seed, *preset.base]
    base += [] if run.base == "llava" else ["--base", run.base]  # steps of before name no base
    run.step("base of stage 1", [out / "vllm_base"], base)
    tune = ["bash", "vllm/scripts/finetune_mini.sh", out / "vllm_base"]
    tune += [data / f"{NAME}_conversations.json", run.frames / "train", out / "vllm"]
    run.step("tuning of stage 1", [out / "vllm"], [*tune, *preset.tune])
    for split in ("val", "train"):
        describe(run, split)
    score = ("--descriptions", run.described("val"), "--out", out / "scores" / "descriptions.json")
    oracle(run, "right descriptions", out / "scores" / "descriptions.json", *score)


def describe(run: Run, split: str) -> None:
    """Descriptions and features of a split in two chunks, merged into stage 2's action file."""
    parts = run.out / "described" / "chunks" / split
    features = [run.out / "features" / kind / split for kind in ("image", "text")]
    words = ["-m", "llava.eval.run_llava_in_loop", "--model-path", run.out / "vllm"]
    words += ["--image-dir", run.frames / split, "--action-label", run.labels(split)]
    words += ["--query", QUERY, "--save-path", parts, "--seed", 42, *BATCH]
    words += ["--save-image-feature-path", features[0], "--save-text-feature-path", features[1]]
    pair = chunks(*words, flags=("--num-chunks", "--chunk-idx"))
    run.step(f"descriptions of {split}", [parts, *features], *pair)
    merge = python("vllm/scripts/merge_inference_results.py", parts)
    merge += ["--output", run.out / "described" / f"merged_{split}.json"]
    merge += ["--action-label", run.labels(split), "--actions-output", run.described(split)]
    run.step(f"merge of {split}", [run.described(split)], merge)


def oracle(run: Run, name: str, output: Path, *words: object) -> None:
    base = ("-m", "mini.oracle.score", "--dataset-root", run.data, "--name", NAME, "--split", "val")
    run.step(name, [output], python(*base, *words))


def stage_2(run: Run, variant: str) -> Path:
    """Train, generate and score one variant -> folder of its frames."""
    out, preset = run.out, run.preset
    features, text = VARIANTS[variant]
    both = [f"model.params.conditioner.variant={features}", *preset.both, *BASES[run.base]]
    train, generate = [], [f"data.metadata_path={run.data / f'{NAME}_metadata.json'}"]
    for prefix, split, words in (
        ("data.params.train.params", "train", train),
        ("data.params.validation.params", "val", train),
        ("data.params", "val", generate),
    ):
        words.append(f"{prefix}.data_path={run.frames / split}")
        words.append(f"{prefix}.edit_path={run.described(split)}")
        for kind in ("image", "text"):
            root = out / "features" / kind / split
            words.append(f"{prefix}.additional_cond_path.llava_{kind}={root}")
        words.append(f"{prefix}.text_prompt_key={text}")
    cache = out / ("cache" if text == DESCRIPTION_KEY else f"cache_{text}")
    schedule = f"model.params.scheduler_config.params.cycle_lengths=[{preset.train_steps}]"
    steps = f"lightning.trainer.max_steps={preset.train_steps}"

    make = python("-m", "ldm.cache", "--config", "configs/train_mini.yaml", "--out", cache)
    run.step(cache.name, [cache], [*make, *train, *BASES[run.base]])
    learn = python("main.py", "--name", variant, "--logdir", out / "logs", "--seed", run.seed)
    learn += ["--base", "configs/train_mini.yaml", "--train", *train, *both]
    learn += [f"data.params.cache_path={cache}", schedule, steps, *preset.train]
    checkpoints = out / "logs" / variant / "checkpoints"
    run.step(f"training of {variant}", [checkpoints / "last.ckpt"], learn)
    words = ["metrics/inference.py", "--config", "configs/generate_mini.yaml"]
    words += ["--ckpt", checkpoints / "last.ckpt", *generate, *both]
    pair = chunks(*words, flags=("--n_chunk", "--chunk_idx"))
    run.step(f"frames of {variant}", [checkpoints / "last"], *pair)
    images = next((checkpoints / "last").glob("*/images"))
    score = out / "scores" / f"{variant}.json"
    oracle(run, f"oracle on {variant}", score, "--gen-path", images, "--out", score)
    return images


def measure(run: Run, variant: str, images: Path) -> None:
    """Figures of the frames and of copying the source, and the report of both."""
    out, edits, copied = run.out, run.described("val"), run.out / "copied"
    figures = ["metrics/all_metrics_in_one.py", "--dataset", NAME, "--edit_file", edits]
    figures += ["--gt_path", run.frames / "val_gt_for_metric", "--llava_key", DESCRIPTION_KEY]
    words = [*figures, "--gen_path", images, "--out", out / "metrics"]
    run.step("metrics", [out / "metrics"], python(*words))
    words = ["metrics/copy_source.py", "--source-path", run.frames / "val", "--edit_file", edits]
    words += ["--out", copied / "images"]
    run.step("frames of copying", [copied / "images"], python(*words))
    words = [*figures, "--gen_path", copied / "images"]
    run.step("metrics of copying", [copied / "metric"], python(*words))
    words = ["metrics/report.py", "--dataset", NAME, "--dataset-root", run.data]
    words += ["--gen_path", images, "--edit_file", edits, "--metric", out / "metrics"]
    words += ["--score", out / "scores" / f"{variant}.json"]
    words += ["--description-score", out / "scores" / "descriptions.json"]
    words += ["--against", copied, "--against-images", copied / "images"]
    words += ["--stage1-log", out / "vllm" / "trainer_state.json"]
    words += ["--stage2-log", out / "logs" / variant / "metrics.jsonl", "--out", out / "report"]
    run.step("report", [out / "report"], python(*words))


def summary(run: Run, variants: Sequence[str]) -> str:
    """One line a variant, and one on the descriptions."""
    texts = read_json(run.out / "scores" / "descriptions.json")
    lines = [
        f"descriptions with the right object, hand and target: {texts['object_hand_target']:.1%} "
        f"of {texts['count']}",
        f"{'stage 2 is told':<24}{'done':>8}{'other':>8}{'PSNR':>8}{'gain':>8}   (val frames)",
    ]
    for variant in variants:
        score = read_json(run.out / "scores" / f"{variant}.json")
        lines.append(
            f"{variant:<24}{score['done_rate']:>8.1%}{score['other_action_rate']:>8.1%}"
            f"{score['psnr_changed']:>8.2f}{score['psnr_gain']:>+8.2f}"
        )
    return "\n".join([*lines, LEGEND])


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("what", choices=[*PRESETS, "ablation"])
    parser.add_argument("--out", type=Path, help="default: runs/quickstart, runs/full ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", choices=BASES, default="llava", help="model of stage 1")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="sizes of an ablation")
    args = parser.parse_args(argv)
    preset = args.preset if args.what == "ablation" else args.what
    name = "quickstart" if preset == "quick" else preset
    default = PROJECT / "runs" / (name if args.base == "llava" else f"{name}_{args.base}")
    run = Run((args.out or default).absolute(), PRESETS[preset], args.seed, args.base)
    config = run.out / "vllm_base" / "config.json"
    if config.exists() and (kind := read_json(config)["model_type"]) != args.base:
        raise EgoGenError(f"{config}: a {kind} model, expected {args.base}; choose another --out")
    begun = time.monotonic()
    stage_1(run)
    variants = list(VARIANTS) if args.what == "ablation" else [FULL_VARIANT]
    for variant in variants:
        images = stage_2(run, variant)
    if args.what != "ablation":
        measure(run, FULL_VARIANT, images)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{summary(run, variants)}")
    print(f"{time.monotonic() - begun:.0f} s, largest process {largest:.1f} GiB")
    if args.what != "ablation":
        print(f"report: {run.out / 'report' / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
