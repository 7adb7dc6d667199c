"""The pipeline as one file: folders load, sample and save where the project is not installed."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_pipeline import one_input

from egogen import EgoGenError
from ldm.checkpoints import standalone as made
from ldm.pipeline import LegoPipeline

# Packages that diffusers needs itself, or that the file says it needs.
OTHERS = {"PIL", "diffusers", "numpy", "torch", "transformers"}
THERE = """
import json, pickle, sys
from pathlib import Path

class Absent:  # also where a package is installed beside the others
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("egogen", "ldm", "lego", "llava", "metrics", "omegaconf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path += json.loads(sys.argv[2])
root = Path(sys.argv[1])
try:
    import ldm
    raise SystemExit("ldm is there")
except ImportError:
    pass
import torch
from diffusers import DiffusionPipeline

call = pickle.loads((root / "call.pickle").read_bytes())
pipe = DiffusionPipeline.from_pretrained(root / "saved", trust_remote_code=True)
frames = [pipe(**call).images]
pipe.save_pretrained(root / "again")
again = DiffusionPipeline.from_pretrained(root / "again", trust_remote_code=True)
frames += [p(**call).images for p in (again, type(again).from_pipe(again))]
frames += [type(again).from_pretrained(root / "again")(**call).images]
torch.save(frames, root / "frames.pt")
try:
    pipe(**call | {"eta": 0.5})
except Exception as error:
    print(type(error).__name__, error)
try:
    type(pipe).from_checkpoint("x.ckpt", "x.yaml")
except Exception as error:
    print(type(error).__name__, error)
"""


def run_without_the_project(root: Path) -> subprocess.CompletedProcess:
    packages = [path for path in sys.path if path.endswith("-packages")]
    command = [sys.executable, "-I", "-S", "-c", THERE, str(root), json.dumps(packages)]
    kept = {"HF_HOME": str(root / "hub"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, env=kept, capture_output=True, text=True)


def test_a_folder_is_used_and_saved_without_the_project(own, usual, tmp_path):
    own.save_pretrained(tmp_path / "saved")
    (tmp_path / "call.pickle").write_bytes(pickle.dumps(one_input()))
    done = run_without_the_project(tmp_path)
    assert done.returncode == 0, done.stderr
    for frame in torch.load(tmp_path / "frames.pt"):
        assert torch.equal(frame, usual)
    refused, lacking = done.stdout.strip().splitlines()[-2:]  # libraries print there too
    assert refused.startswith("EgoGenError eta: not to be chosen")
    assert (
        lacking == "EgoGenError load_model_params: needs the project LEGO, which is not installed"
    )
    assert "might require" not in done.stderr and "Expected types" not in done.stderr
    for name in ("lego_pipeline.py", "conditioner/ldm.conditioning.py", "README.md"):
        before, after = (tmp_path / folder / name for folder in ("saved", "again"))
        assert before.read_bytes() == after.read_bytes()
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["conditioner"] == ["ldm.conditioning", "FeatureConditioner"]
    assert index["_class_name"] == ["lego_pipeline", "LegoPipeline"]
    assert torch.equal(
        LegoPipeline.from_pretrained(tmp_path / "again")(**one_input()).images, usual
    )


def test_a_folder_without_features_has_the_pipeline_alone(pipe, tmp_path):
    LegoPipeline(**pipe.components | {"conditioner": None}).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "lego_pipeline.py").exists()
    assert not (tmp_path / "saved" / "conditioner").exists()


def test_a_folder_with_code_that_imports_the_project_still_loads(own, usual, tmp_path):
    """As they were written before the code was one file."""
    own.save_pretrained(tmp_path / "saved")
    for name, module in (("lego_pipeline", "pipeline"), ("conditioner/ldm.conditioning",) * 2):
        module = module.split(".")[-1]
        what = "LegoPipeline" if module == "pipeline" else "FeatureConditioner"
        thin = f'from ldm.{module} import {what}\n\n__all__ = ["{what}"]\n'
        (tmp_path / "saved" / f"{name}.py").write_text(thin)
    from diffusers import DiffusionPipeline

    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert isinstance(loaded, LegoPipeline)
    assert torch.equal(loaded(**one_input()).images, usual)


def test_the_file_needs_no_more_than_it_says(tmp_path):
    text = made.standalone()
    assert text == made.standalone()  # the same every time
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert found - set(sys.stdlib_module_names) == OTHERS
    assert "yaml" not in text.replace(".yaml", "") and "omegaconf" not in text.lower()
    made.main([str(tmp_path / "lego_pipeline.py")])
    assert (tmp_path / "lego_pipeline.py").read_text() == text


def test_definitions_stand_in_the_file_as_in_their_modules():
    text = made.standalone()
    for path in ("ldm/sampling.py", "ldm/pipeline.py", "egogen/seeds.py"):
        source = (Path(__file__).parents[1] / path).read_text()
        for node in ast.parse(source).body:
            kept = isinstance(node, ast.ClassDef) and node.name in ("LegoPipeline", "Guidance")
            if kept or getattr(node, "name", "") in ("stable_seed", "guided_denoiser"):
                assert ast.get_source_segment(source, node) in text


def collected(tmp_path, monkeypatch, **modules: str) -> dict:
    """What `add` finds for `wanted` of egogen_made.a; modules are files of this package."""
    folder = tmp_path / "egogen_made"
    folder.mkdir()
    for name, source in {"__init__": "", **modules}.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(made, "_is_own", lambda module: module.startswith("egogen_made"))
    origins: dict = {}
    try:
        made.add("wanted", "egogen_made.a", origins, {})
    finally:
        for name in [name for name in sys.modules if name.startswith("egogen_made")]:
            del sys.modules[name]
        made.Source.cache_clear()
    return origins


def test_what_is_needed_is_followed_through_modules(tmp_path, monkeypatch):
    a = "import os as system\nfrom egogen_made.b import helper\nUNUSED = 1\n\n\n"
    a += "def wanted():\n    return helper(system.sep)\n"
    b = "LIMIT = 3\n\n\ndef helper(x):\n    return x * LIMIT\n"
    assert collected(tmp_path, monkeypatch, a=a, b=b) == {
        "wanted": ("egogen_made.a", "wanted"),
        "helper": ("egogen_made.b", "helper"),
        "LIMIT": ("egogen_made.b", "LIMIT"),
        "system": ("os", ""),
    }


B = "def x():\n    return LIMIT\n\n\nLIMIT = 1\n"
IMPOSSIBLE = {
    "LIMIT: stands in egogen_made.a and egogen_made.b, expected two names": (
        "from egogen_made.b import x\nLIMIT = 2\n\n\ndef wanted():\n    return LIMIT + x()\n"
    ),
    "y is not what egogen_made.b calls so": (
        "from egogen_made.b import x as y\n\n\ndef wanted():\n    return y()\n"
    ),
    "b is not what egogen_made calls so": (
        "from egogen_made import b\n\n\ndef wanted():\n    return b.x()\n"
    ),
}


@pytest.mark.parametrize("told", IMPOSSIBLE)
def test_what_one_file_cannot_hold_is_named(tmp_path, monkeypatch, told):
    with pytest.raises(EgoGenError, match=told):
        collected(tmp_path, monkeypatch, a=IMPOSSIBLE[told], b=B)
