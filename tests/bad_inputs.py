"""All cases of bad input, as data; those that fit one command alone stand here, a row each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bad_input_annotations import ANNOTATIONS
from bad_input_building import BUILDING
from bad_input_curating import CURATING
from bad_input_damage import (
    Case,
    cut,
    edited,
    gone,
    halved,
    linked,
    marked,
    payload,
    put,
    untouched,
)
from bad_input_download import DOWNLOADS
from bad_input_files import CLIP, TRUTH, VAL_ACTIONS, VAL_TEXT, field, products
from bad_input_guidance import GUIDANCE
from bad_input_hub import HUB
from bad_input_judge import JUDGING
from bad_input_lora import LORA
from bad_input_models import MODELS
from bad_input_served import SERVED
from bad_input_sizes import FRAME_SIZES
from bad_input_study import STUDY
from bad_input_tuning import TUNING


def first_row(**fields: object) -> Callable[[list], None]:
    return lambda rows: rows[0].update(fields)


def turns(*pairs: tuple[object, object]) -> list[dict]:
    return [{"from": who, "value": text} for who, text in pairs]


TALK = "conversations.json"
ASKED = ("human", "<image>\nHow?")
CONVERSATIONS = [
    Case("tune", "no JSON", put(TALK, "["), (TALK,)),
    Case("tune", "an object", put(TALK, "{}"), (TALK, "list")),
    Case("tune", "no entries", put(TALK, "[]"), ("at least one entry",)),
    Case("tune", "entry is a text", edited(TALK, lambda _: ["a"]), ("entry 0",)),
    Case("tune", "no turns", edited(TALK, first_row(conversations=[])), ("entry 0",)),
    Case("tune", "no answer", edited(TALK, first_row(conversations=turns(ASKED))), ("entry 0",)),
    Case(
        "tune",
        "answer is a number",
        edited(TALK, first_row(conversations=turns(ASKED, ("gpt", 3)))),
        ("entry 0", "turn 1"),
    ),
    Case(
        "tune",
        "unknown speaker",
        edited(TALK, first_row(conversations=turns(ASKED, ("dog", "wuff")))),
        ("entry 0", "expected 'from' human or gpt"),
    ),
    Case(
        "tune",
        "picture asked for twice",
        edited(TALK, first_row(conversations=turns(ASKED, ("gpt", "a"), ASKED, ("gpt", "b")))),
        ("entry 0", "second <image>"),
    ),
    Case("tune", "picture leaves", edited(TALK, first_row(image="../../x.jpg")), ("entry 0",)),
    Case("tune", "no such option", untouched, ("--epoch",), more="--epoch 3"),
    Case("tune", "rate is a word", untouched, ("learning_rate",), more="--learning_rate fast"),
]

CHUNK = "chunks/vllm_1.json"
OTHER = "chunks/vllm_2.json"


def entry_twice(root: Path) -> None:
    (root / OTHER).write_bytes((root / CHUNK).read_bytes())


def chunk_twice(root: Path) -> None:
    (root / "chunks" / "more_1.json").write_bytes((root / CHUNK).read_bytes())


MERGING = [
    Case("merge", "chunk missing", gone(CHUNK), ("chunks 1 are missing",)),
    Case("merge", "chunk cut short", cut(CHUNK), ("vllm_1.json",)),
    Case("merge", "chunk is a list", put(CHUNK, "[]"), ("vllm_1.json", "object")),
    Case(
        "merge",
        "no description",
        edited(CHUNK, lambda c: c[CLIP]["0"].pop("description") and c),
        ("vllm_1.json", f"{CLIP}/0", "description"),
    ),
    Case(
        "merge",
        "description is null",
        edited(CHUNK, field("description", None)),
        ("vllm_1.json", f"{CLIP}/0"),
    ),
    Case(
        "merge",
        "entry not described",
        edited(CHUNK, lambda c: c[CLIP].pop("0") and c),
        ("not described", f"{CLIP}/0"),
    ),
    Case(
        "merge",
        "unknown entry",
        edited(CHUNK, lambda c: c[CLIP].update({"9": c[CLIP]["0"]})),
        ("has no entries", f"{CLIP}/9"),
    ),
    Case("merge", "record is a list", put("chunks/made_by.json", "[]"), ("made_by.json", "object")),
    Case("merge", "entry twice", entry_twice, ("entries stand twice",)),
    Case("merge", "chunk twice", chunk_twice, ("chunk 1 stands twice",)),
]

SIZES = "ego4d_metadata.json"
METADATA = [
    Case(entry, f"metadata: {what}", damage, (SIZES, said), code)
    for entry, code in (("check", 1), ("generate", 2))
    for what, damage, said in (
        ("missing", gone(SIZES), ""),
        ("no JSON", put(SIZES, "{"), ""),
        ("a list", put(SIZES, "[]"), "expected an object"),
        ("clip missing", edited(SIZES, lambda c: c.pop(CLIP) and c), CLIP),
        ("width is text", edited(SIZES, lambda c: c[CLIP].update(width="450")), CLIP),
        ("width is 0", edited(SIZES, lambda c: c[CLIP].update(width=0)), CLIP),
        ("no height", edited(SIZES, lambda c: c[CLIP].pop("height") and c), CLIP),
    )
]

FIGURES = "metric/metric.json"
MEASURING = [
    Case("metrics", "unknown metric", untouched, ("ssim",), more="--metrics ssim"),
    Case("metrics", "weights missing", untouched, ("alexnet",), more="--metrics lpips_alex"),
    Case(
        "metrics",
        "weights cut short",
        put("weights/alexnet-owt-7be5be79.pth", b"\x80"),
        ("alexnet",),
        more="--metrics lpips_alex",
    ),
    Case(
        "metrics",
        "weights with a payload",
        payload("weights/alexnet-owt-7be5be79.pth"),
        ("alexnet",),
        more="--metrics lpips_alex",
    ),
    Case(
        "metrics",
        "archive with a payload",
        payload("weights/egovlp.pth", inside_zip=True),
        ("egovlp",),
        more="--metrics egovlp",
    ),
    Case("metrics", "no truth", gone(TRUTH), ("frame_000020.jpg",)),
    Case("metrics", "no folder of frames", untouched, ("none",), more="--gen_path none"),
    Case("compare", "figures missing", gone(FIGURES), ("metric",)),
    Case("compare", "figures cut short", cut(FIGURES), ("metric.json",)),
    Case("compare", "figures are a list", put(FIGURES, "[]"), ("metric.json",)),
    Case("compare", "samples missing", gone("other/per_sample.csv"), ("per_sample.csv",)),
    Case("compare", "samples cut short", cut("other/per_sample.csv"), ("other",)),
    Case("compare", "samples empty", put("other/per_sample.csv", ""), ("4 of 4 frames",)),
    Case("report", "figures cut short", cut(FIGURES), ("metric.json",)),
    Case("report", "samples empty", put("metric/per_sample.csv", ""), ("per_sample.csv",)),
    Case("score", "truth missing", gone("mini/ego4d_truth.json"), ("ego4d_truth.json",)),
    Case("swap", "a text feature missing", gone(VAL_TEXT), (VAL_TEXT, "no such file")),
    Case(
        "swap",
        "onto its input",
        untouched,
        ("another folder",),
        more="--text {root}/text --out {root}",
    ),
    Case("swap", "no store", untouched, ("none", "no such file"), more="--image {root}/none"),
]

LONG = "the right hand picks up " * 2_000
CAPTIONS = [
    Case(
        "generate",
        "description of 10,000 words",
        edited(VAL_ACTIONS, field("llava_forecast_finetune", LONG)),
        (),
        0,
    ),
    Case(
        "generate",
        "description of no words",
        edited(VAL_ACTIONS, field("llava_forecast_finetune", "")),
        (f"{CLIP}/0", "llava_forecast_finetune"),
        1,
    ),
    Case(
        "describe",
        "action of 10,000 words",
        edited(VAL_ACTIONS, field("action", LONG)),
        (f"{CLIP}/0",),
        1,
    ),
    Case(
        "describe",
        "action of no words",
        edited(VAL_ACTIONS, field("action", " ")),
        (f"{CLIP}/0",),
        1,
    ),
    Case(
        "features",
        "description of 10,000 words",
        edited(VAL_ACTIONS, field("llava_forecast_finetune", LONG)),
        (f"{CLIP}/0",),
        1,
    ),
    Case(
        "features",
        "description of no words",
        edited(VAL_ACTIONS, field("llava_forecast_finetune", "")),
        (f"{CLIP}/0",),
    ),
    Case(
        "check",
        "description of no words",
        edited(VAL_ACTIONS, field("llava_forecast_finetune", "")),
        (f"{CLIP}/0",),
        1,
    ),
    Case(
        "tune",
        "answer of 10,000 words",
        edited(TALK, first_row(conversations=turns(ASKED, ("gpt", LONG)))),
        (),
        0,
    ),
    Case(
        "tune",
        "answer of no words",
        edited(TALK, first_row(conversations=turns(ASKED, ("gpt", "")))),
        ("entry 0",),
    ),
]

WRITERS = (
    "render",
    "build",
    "curate",
    "download",
    "tune",
    "describe",
    "merge",
    "features",
    "compact",
)
WRITERS += ("convert vllm", "cache", "train", "convert ldm", "metrics", "compare", "report")
WRITERS += ("copy source", "judge", "study make")
COMMAND_LINES = [
    Case("describe", "no such chunk", untouched, ("chunk",), more="--num-chunks 2 --chunk-idx 3"),
    Case("describe", "batch of 0", untouched, ("batch",), more="--batch-size 0"),
    Case("describe", "question without a place", untouched, ("{}",), more="--query How?"),
    Case("describe", "temperature below 0", untouched, ("temperature",), more="--temperature -1"),
    Case("describe", "temperature is NaN", untouched, ("temperature",), more="--temperature nan"),
    Case("describe", "no such device", untouched, ("warp",), more="--device warp"),
    Case("generate", "no such chunk", untouched, ("chunk",), more="--n_chunk 2 --chunk_idx 3"),
    Case("generate", "misspelt key", untouched, ("inference.steps",), more="inference.step=3"),
    Case("generate", "0 steps", untouched, ("steps",), more="inference.steps=0"),
    Case(
        "generate", "too many steps", untouched, ("steps=1001", "1000"), more="inference.steps=1001"
    ),
    Case(
        "generate", "scale nan", untouched, ("scales_txt=nan",), more="inference.scales_txt=[.nan]"
    ),
    Case("train", "no scale", untouched, ("scales_img=[]",), more="inference.scales_img=[]"),
    Case("generate", "no sampler", untouched, ("sampler",), more="inference.sampler=magic"),
    Case(
        "generate",
        "no such variant",
        untouched,
        ("variant",),
        more="model.params.conditioner.variant=all",
    ),
    Case("generate", "no such field", untouched, ("gpt",), more="data.params.text_prompt_key=gpt"),
    Case("cache", "batch of 0", untouched, ("--batch-size 0",), more="--batch-size 0"),
    Case("train", "misspelt key", untouched, ("batch_size",), more="data.params.batchsize=3"),
    Case(
        "train",
        "width of other features",
        untouched,
        ("9",),
        more="model.params.conditioner.feature_dim=9",
    ),
    Case(
        "train",
        "checkpoint of the other stage",
        untouched,
        ("model.safetensors",),
        more="model.params.ckpt_path={root}/vllm/model.safetensors",
    ),
    Case(
        "generate",
        "checkpoint of the other stage",
        untouched,
        ("model.safetensors",),
        more="--ckpt {root}/vllm/model.safetensors",
    ),
    Case(
        "describe",
        "checkpoint of the other stage",
        untouched,
        ("model.ckpt",),
        more="--model-path {root}/model.ckpt",
    ),
    Case("render", "no pairs", untouched, ("pairs",), more="--pairs 0"),
    Case("render", "more val than pairs", untouched, ("val",), more="--pairs 2 --val-pairs 3"),
    *(Case(entry, "out is a file", put("out", "a file"), ("out",)) for entry in WRITERS),
    Case("check", "no dataset", untouched, ("epickitchen",), more="--dataset epickitchen"),
]

CHAINS = [
    Case("frame", f"chain: {what}", untouched, said, code, more)
    for what, said, code, more in (
        ("names no action", ("'#C C': names no action",), 2, "--action '#C C'"),
        ("empty action", ("'': names no action",), 2, "--action ''"),
        (
            "photograph has a frame's name",
            ("out-2.jpg: is the photograph itself",),
            2,
            "--action cut --image {root}/out-2.jpg",
        ),
        (
            "second action of 10,000 words",
            ("not generated: action 2 of 3", "expected at most 4096"),
            1,
            f"--action 'cut {LONG}' --action cut",
        ),
    )
]

HARMLESS = [
    Case(entry, what, damage, (), 0)
    for what, damage in (
        ("byte order marks", marked),
        ("halves of emojis", halved),
        ("files that are links", linked),
    )
    for entry in ("check", "describe", "merge", "tune", "cache", "train", "generate", "metrics")
] + [
    Case(
        "generate",
        f"path {value!r}",
        untouched,
        (f"data.params.data_path={value}",),
        more=f'"data.params.data_path={value}"',
    )
    for value in ("0755", "[draft]/val", "a: b", "@home", "~", "none #2")
]

CASES = [
    *HARMLESS,
    *FRAME_SIZES,
    *products(),
    *CONVERSATIONS,
    *MERGING,
    *METADATA,
    *BUILDING,
    *CURATING,
    *TUNING,
    *SERVED,
    *JUDGING,
    *ANNOTATIONS,
    *DOWNLOADS,
    *MODELS,
    *LORA,
    *GUIDANCE,
    *HUB,
    *MEASURING,
    *CAPTIONS,
    *COMMAND_LINES,
    *CHAINS,
    *STUDY,
]
