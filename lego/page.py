"""The page that `lego.demo` serves. What stands on it is said by page.toml, looks by page.css."""

import html
import re
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from egogen import EgoGenError, write_json
from egogen.frames import JPEG, PNG, read_rgb
from ldm.config import load_config
from ldm.images import write_image
from ldm.released_config import PRESETS
from ldm.schema import SAMPLER_NAMES, GenerateConfig
from lego.stages import Stages, check_photo, verb_phrase

ROOM = Path(__file__).parent
PARTS = tomllib.loads((ROOM / "page.toml").read_text("utf-8"))
LAUNCH = PARTS["launch"] | {"css_paths": ROOM / "page.css"}
FIELDS = ["action", "text", *PARTS["advanced"]["parts"]]  # that a visitor fills in
KINDS = (JPEG, PNG, b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # how files of pictures begin
MOST_PIXELS, LONGEST = 2**26, 1024  # of an upload; side of what is kept of it
# Path and name of an upload: gradio's own step would decode it, whatever it is.
gr.Image.preprocess = lambda self, file: file and (file.path, file.orig_name or "photo")


def read_photo(path: str, name: str) -> Image.Image:
    """An upload as RGB, upright, of at most LONGEST pixels a side. Raises EgoGenError, in which it
    is `name`, for what is no picture of a common kind, broken, too large or too narrow.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        if not start.startswith(KINDS) and start[4:] != b"ftypavif":
            raise EgoGenError(f"{name}: expected a picture (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF)")
        file.seek(0)
        photo = read_rgb(name, file, MOST_PIXELS)
    check_photo(photo, name)
    photo.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return photo


class Visit:
    """What one visitor has: `frames` are files made from `photo`, the last file of `chain`."""

    came: tuple[int, ...] = ()  # hashes of the files in which `photo` came
    starting = threading.Lock()  # one upload is read at a time: that bounds the memory
    stopped = threading.Event()  # of the work that was begun last
    stopped.set()

    def start(self, path: str, called: str, root: str) -> bool:
        """Begin with an upload, once called `called` -> whether it is not what is there already."""
        with self.starting:
            if (known := hash(Path(path).read_bytes())) in self.came:
                return False
            photo = read_photo(path, " ".join(called.split())[-80:])
            name = re.sub(r"[^\w-]+", "-", Path(called).stem).strip("-")[:40] or "photo"
            self.folder, self.chain = TemporaryDirectory(dir=root), []  # it goes with the visit
            write_image(Path(self.folder.name, "files", f"{name}.png"), photo, 100)
            self.go_on(Path(self.folder.name, "files", f"{name}.png"), known)
            return True

    def go_on(self, file: Path, *came: int) -> None:
        """Frames are made from this one from now on."""
        self.photo, self.came = read_rgb(file), (hash(file.read_bytes()), *came)
        self.chain, self.frames, self.chosen, self.done = [*self.chain, file], [], 0, ("", "")

    def describe(self, stages: Stages, asked: dict, tell: Callable[[str], None]) -> None:
        """Write a description, told as it grows, or read the text that a visitor has given."""
        action, text = asked["action"], asked["text"].strip()
        if (action, text) == self.done:  # the action that was asked for last, and the answer
            return
        text = "" if text == self.done[1] else text  # written for another action
        how: dict = {name: asked[name] for name in ("seed", "temperature")}
        given: dict = {"texts": [text] if text else None, "on_text": tell}
        (self.described,) = stages.describe([self.photo], [action], **how, **given)
        self.done = action, self.described.text
        self.how = {"edited": True} if text else {"edited": False, **how}

    def draw(self, stages: Stages, asked: dict, record: dict, tell: Callable[[int], None]) -> None:
        """Make frames, and settings beside them as `lego.frame` does; `tell`: steps done so far."""
        named: dict = {"preset" if asked["sampler"] in PRESETS else "sampler": asked["sampler"]}
        named |= {"steps": asked["steps"]} | {k: [asked[k]] for k in ("scales_txt", "scales_img")}
        overrides = [*record["overrides"], *(f"inference.{k}={v}" for k, v in named.items())]
        inference = load_config(GenerateConfig, [record["config"]], overrides).inference
        made: dict = {x: "/".join(Path(record[x]).parts[-2:]) for x in ("vllm", "ldm", "config")}
        made |= {"image": self.chain[0].name, "source": self.chain[-1].name, "action": self.done[0]}
        made |= {"description": self.done[1], "described": self.how, "overrides": overrides}
        self.frames, self.chosen = [], 0
        for seed in range(asked["seed"], asked["seed"] + asked["seeds"]):
            how: dict = {"on_step": lambda step: tell(len(self.frames) * asked["steps"] + step)}
            how |= {"seed": seed, "inference": inference}
            (frame,) = stages.draw([self.photo], [self.done[0]], [self.described], **how)
            file = self.chain[0].with_name(f"{self.chain[0].stem}-{len(self.chain)}-seed{seed}.png")
            write_json(file.with_suffix(".json"), record | made | {"seed": seed})
            write_image(file, frame.image, 100)
            self.frames.append(file)


def working(job: Callable, stopped: threading.Event, told: dict) -> Iterator[dict]:
    """Run `job(tell)` in a thread -> what it told last, at first `told`, ten times a second. When
    nobody listens (Stop, a closed tab), `stopped` is set, and the next that it tells ends it.
    """
    end: Future = Future()

    def tell(word: dict) -> None:
        if stopped.is_set():
            raise CancelledError
        told.update(word)

    def run() -> None:
        try:
            end.set_result(job(tell))
        except BaseException as error:
            end.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while not end.done():
            wait([end], timeout=0.1)
            yield told.copy()
        end.result()
    finally:
        stopped.set()


@contextmanager
def one_line(hidden: Any = "\0") -> Iterator[None]:
    """What a visitor can put right becomes one line on the page, without what is hidden."""
    try:
        yield
    except (EgoGenError, OSError) as error:  # also an upload that has become too old
        line = html.escape(str(error).removeprefix("--").replace(str(hidden), "stage 1"))
        raise gr.Error(line, duration=None, print_exception=False) from None


class Page:
    """`record`: of the models, for the settings beside frames; `root`: folder of all files."""

    def __init__(self, stages: Stages, record: dict[str, Any], root: str):
        self.stages, self.record, self.root, self.parts = stages, record, root, {}
        how, files = stages.config.inference, sorted(ROOM.glob("*.jpg"))
        values = {"scales_txt": how.scales_txt[0], "scales_img": how.scales_img[0]}
        values |= {"sampler": how.preset or how.sampler, "steps": how.steps, "seed": how.seed}
        values["temperature"] = stages.settings.temperature
        self.known: dict[str, dict] = {name: {"value": value} for name, value in values.items()}
        self.known["sampler"]["choices"] = [*PRESETS, *SAMPLER_NAMES]
        self.known["examples"] = {"examples": [[str(x), x.stem.replace("_", " ")] for x in files]}
        with gr.Blocks(**PARTS["blocks"]) as self.blocks:
            self.put("page")
            self.events(gr.State(Visit()))

    def put(self, name: str) -> None:
        """Make a component of page.toml, with all inside it, here on the page."""
        fields = PARTS[name] | self.known.get(name, {})
        kind, inside = fields.pop("kind"), fields.pop("parts", [])
        if kind == "Examples":
            fields["inputs"] = [self.parts["source"], self.parts["action"]]
        made = self.parts[name] = getattr(gr, kind)(elem_id=name, **fields)
        if inside:
            with made:
                for each in inside:
                    self.put(each)

    def events(self, visit: gr.State) -> None:
        part = self.parts
        everything = [x for x in part.values() if isinstance(x, gr.blocks.Block)]
        fields = [visit, part["source"], *(part[name] for name in FIELDS)]
        how: dict = {"show_progress_on": part["status"], "concurrency_id": "device"}  # one by one
        jobs = [part["action"].submit(partial(self.work, True), fields, everything, **how)]
        jobs += [part["make"].click(partial(self.work, False), fields, everything, **how)]
        how = {"outputs": everything, "show_progress": "hidden"}
        part["source"].change(self.take, [visit, part["source"]], **how)
        part["frames"].select(self.choose, visit, **how)
        part["next"].click(self.go_on, [visit, part["seed"], part["seeds"]], **how)
        halt = part["stop"].click(None, cancels=jobs).then
        halt(lambda it: it.stopped.wait(60) and "Stopped.", visit, part["status"], queue=False)

    def shown(self, visit: Visit, line: str, **more: Any) -> dict[Any, Any]:
        """What stands on the page for a visit, with `line` as its status."""
        at, first = visit.frames[visit.chosen : visit.chosen + 1], visit.chain[0]
        frame, archive = [*map(read_rgb, at)], str(first.parent.with_name(first.stem))
        seeds = [(each, each.stem.rpartition("-")[2]) for each in visit.frames]
        more |= {"status": line, "results": gr.update(visible=bool(at))}
        more["frame"] = (visit.photo.resize(frame[0].size), *frame) if at else None
        more["frames"] = gr.update(value=seeds, visible=len(seeds) > 1)
        more["strip"] = gr.update(value=[*visit.chain, *at], visible=len(visit.chain) > 1)
        more["zip"] = shutil.make_archive(archive, "zip", first.parent) if at else None
        return {self.parts[name]: value for name, value in more.items()}

    def take(self, visit: Visit, upload: tuple[str, str] | None) -> Any:
        """A picture has come into the source's place, maybe by the page itself."""
        with one_line():
            if upload and visit.start(*upload, self.root):
                return self.shown(visit, "Name an action.", text="", source=str(visit.chain[0]))
        return gr.skip()

    def work(self, only_text: bool, visit: Visit, upload: Any, *fields: Any) -> Iterator[Any]:
        """Write the description, and make the frames unless `only_text`; told as it goes."""
        asked = dict(zip(FIELDS, fields, strict=True))

        def job(tell: Callable) -> None:
            visit.describe(self.stages, asked, lambda x: tell({"text": x, "status": "Writing."}))
            began = time.monotonic()

            def drawn(done: int) -> None:
                total = asked["steps"] * asked["seeds"]
                left = (time.monotonic() - began) / done * (total - done)
                bar = f'<progress value="{done}" max="{total}"></progress>'
                line = f"Drawing: step {done} of {total}, {left:.0f} s left.{bar}"
                tell({"text": visit.done[1], "status": line})

            if not only_text:
                visit.draw(self.stages, asked, self.record, drawn)

        with one_line(self.stages.vllm):
            if None in (upload, *fields):
                raise EgoGenError("expected a photograph, and a number in each field of Advanced")
            visit.start(upload[0], upload[1], self.root)
            asked["action"] = verb_phrase(asked["action"][: PARTS["action"]["max_length"]])
            asked["text"] = "" if only_text else asked["text"][: PARTS["text"]["max_length"]]
            visit.stopped = threading.Event()
            for told in working(job, visit.stopped, {"status": "Waiting for the device."}):
                yield {self.parts[name]: value for name, value in told.items()}
            yield self.shown(visit, "Done.", text=visit.done[1])

    def choose(self, visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        visit.chosen = event.index
        return self.shown(visit, "Chosen.")

    def go_on(self, visit: Visit, seed: int, seeds: int) -> dict[Any, Any]:
        """The chosen frame becomes the source: with another seed, which would repeat its noise."""
        visit.go_on(visit.frames[visit.chosen])
        words = {"action": "", "text": "", "seed": seed + seeds, "source": str(visit.chain[-1])}
        return self.shown(visit, "Name the next action.", **words)
