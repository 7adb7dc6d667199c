"""How "done" falls with the length of a chain of actions, each frame made from the one before."""

import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from statistics import fmean

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT), str(PROJECT / "vllm")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from egogen import atomic, jobs, read_parser, run_command, seeds  # noqa: E402
from ldm.config import GenerateConfig, load_config  # noqa: E402
from lego.stages import Frame, Stages  # noqa: E402
from llava.describing.decoding import Decoding  # noqa: E402
from metrics.intervals import percentiles, resampled_means  # noqa: E402
from mini.oracle.oracle import judge  # noqa: E402
from mini.oracle.reading import read_image  # noqa: E402
from mini.oracle.score import score_frame  # noqa: E402
from mini.world import clips, render, texts, write  # noqa: E402
from mini.world.scene import Action, Hand, State, after, possible_actions  # noqa: E402

LENGTH = 4  # actions of a chain


def draw(rng: np.random.Generator, state: State, length: int = LENGTH) -> list[Action] | None:
    """Actions that are possible one after the other and change a thing each; None: not as many."""
    if not length:
        return []
    hands, full = state.hands, {thing.inside for thing in state.things.values()}
    # Free again after its action, though it stays there until it acts.
    free = {s: Hand() if h.mode in ("touch", "release") else h for s, h in hands.items()}
    for action in rng.permutation(np.array(possible_actions(replace(state, hands=free)), object)):
        then = after(state, action)
        same = then.things == state.things or hands[action.hand] == then.hands[action.hand]
        if same or (action.verb == "pick up" and action.object in full):
            continue
        if (rest := draw(rng, then, length - 1)) is not None:
            return [action, *rest]
    return None


@dataclass
class Chain:
    """A scene's actions and labels, its frames before and after each as rendered and as `made`."""

    name: str
    actions: list[Action]
    labels: list[str]
    rendered: list[Image.Image]
    made: list[Image.Image]


def chains(run: Path, limit: int) -> list[Chain]:
    request, found = atomic.read_object(run / "data" / write.RECORD)["request"], []
    for index in count():
        if len(found) >= limit:
            return found
        clip = replace(write.plan(request)["ego4d", "val"][0], index=index)
        rng = np.random.default_rng(seeds.stable_seed(clip.seed, "chain", clip.name))
        if actions := draw(rng, clip.scene.state):
            labels = [texts.label(action, clip.dataset, rng) for action in actions]
            states = accumulate(actions, after, initial=clip.scene.state)
            stored = map(clips.jpeg, map(render.Renderer(clip.scene).image, states))
            frames = [Image.open(io.BytesIO(data)).convert("RGB") for data in stored]
            found.append(Chain(clip.name, actions, labels, frames, frames[:1]))


def score(k: int, chain: Chain, made: Frame, from_rendered: Frame) -> dict[str, float | None]:
    """The figures of a chain's frame `k`, and of the one that is made from a rendered frame."""
    action, (before, target) = asdict(chain.actions[k]), chain.rendered[k : k + 2]
    now, truth = read_image(made.image), read_image(target)
    shown, wanted = (
        {kind: (thing.state, thing.held_by) for kind, thing in reading.objects.items()}
        for reading in (now, truth)
    )
    whole = score_frame(chain.rendered[0], target, made.image, action, {})
    return {
        "done": judge(chain.made[k], now, action)[0],
        "things": fmean(shown.get(kind) == fact for kind, fact in wanted.items()),
        "gain": whole["psnr_gain"],
        "from_rendered": judge(before, from_rendered.image, action)[0],
        "renderer": judge(before, truth, action)[0],
    }


def measure(stages: Stages, k: int, found: Sequence[Chain]) -> dict:
    """Make frame `k` of each chain -> its row."""
    rows, size = [], stages.config.inference.batch_size
    for batch in (found[first : first + size] for first in range(0, len(found), size)):
        words = [each.labels[k] for each in batch], [(each.name, str(k)) for each in batch]
        made = stages.frames([each.made[k] for each in batch], *words)
        alone = stages.frames([each.rendered[k] for each in batch], *words) if k else made
        rows += map(partial(score, k), batch, made, alone)
        for chain, frame in zip(batch, made, strict=True):
            chain.made.append(frame.image)
    figures = {"position": k + 1, "n": len(rows)}
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)  # None: not a number
        interval = percentiles(resampled_means(values, np.arange(len(rows))))
        figures |= {name: float(np.nanmean(values)), f"{name}_ci95": interval}
    return figures


def main(argv: Sequence[str]) -> None:
    commands, begun = Path(__file__).with_name("commands.toml"), time.monotonic()
    args = read_parser(commands, "chains", __doc__).parse_intermixed_args(argv)
    torch.set_num_threads(1)
    yaml = str(PROJECT / "configs" / "generate_mini.yaml")
    config = load_config(GenerateConfig, [yaml], args.overrides)
    ldm = args.run / "logs/description_image_text/checkpoints/last.ckpt"
    models = args.run / "vllm", ldm, config, Decoding(max_new_tokens=77), torch.device("cpu")
    stages, found = Stages(*models), chains(args.run, args.limit)
    rows = [measure(stages, k, found) for k in jobs.track(range(LENGTH), LENGTH, "chains")]
    record = {**vars(args), "rows": rows, "seconds": round(time.monotonic() - begun)}
    print(json.dumps(record, indent=2, default=str))


if __name__ == "__main__":
    run_command(main)
