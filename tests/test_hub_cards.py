"""What the hub shows of a model: the code of its card runs, a Space is one folder that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_commands import errors, hub, local_hub, run  # noqa: F401
from safetensors.torch import load_file
from small_dataset import picture
from test_full_disk import small_disk  # noqa: F401
from test_hub import KINDS, MIT, ROOT, command, contents, push, things  # noqa: F401


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def run_card(card: str, address: str, folder: Path) -> str:
    """The code of a card in a process with a cache of its own -> what it prints."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "home")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'vllm'}", "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-c", code_of(card)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("thing", ["vllm", "ldm", "vllm_lora", "ldm_lora", "dataset"])
def test_the_code_of_a_card_runs(thing, things, hub, tmp_path, capfd, monkeypatch):  # noqa: F811
    kind, more, prefix = KINDS[thing]
    base = "vllm" if thing == "vllm_lora" else "ldm"
    if more:
        push(capfd, things / base, "me/base")
    push(capfd, things / thing, "me/it", *more)
    picture(3, (90, 60)).save(tmp_path / "photo.jpg")
    for name, rows in (("image", 256), ("text", 5)):
        np.save(tmp_path / f"{name}.npy", np.ones((rows, 64), np.float32))
    card = hub.repos[f"{prefix}me/it"]["README.md"].decode()
    if thing == "vllm":
        card = card.replace("max_new_tokens=128", "max_new_tokens=4")
    if thing == "ldm":
        card = card.replace("features=features)", "features=features, num_inference_steps=2)")
    if thing in ("ldm", "dataset"):  # nothing of this project asks the hub there
        printed = run_card(card, hub.address, tmp_path)
    else:
        monkeypatch.chdir(tmp_path)
        exec(code_of(card), {})
        printed = capfd.readouterr().out
    if thing == "ldm":
        assert (tmp_path / "frame.jpg").stat().st_size
    if thing == "vllm_lora":
        name = "model.layers.1.mlp.down_proj.weight"
        before = load_file(things / "vllm" / "model.safetensors")[name]
        after = {}
        for file in (tmp_path / "merged").glob("*.safetensors"):
            after |= load_file(file)
        (changed,) = [x for n, x in after.items() if n.endswith("layers.1.mlp.down_proj.weight")]
        assert torch.allclose(changed.float(), before + 4.0, atol=1e-2)  # alpha / r * 2
    if thing in ("vllm", "dataset"):
        assert printed.strip()


# --- a Space


def test_a_space_is_one_folder_that_runs(hub, tmp_path, capfd):  # noqa: F811
    out = tmp_path / "space"
    words = ["--vllm", "me/vllm", "--ldm", "me/ldm@two", *MIT]
    assert command(capfd, "space", out, *words)[0] == 0
    files = contents(out)
    assert {"app.py", "requirements.txt", "README.md", "generate.yaml"} <= files.keys()
    assert not [name for name in files if name.endswith((".pyc", ".ckpt", ".safetensors"))]
    assert str(ROOT).encode() not in b"".join(files.values())
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["license"] == "mit"
    needs = files["requirements.txt"].decode().splitlines()
    assert {re.split(r"\W", need)[0] for need in needs} >= {"torch", "gradio", "diffusers"}
    assert '"--vllm", "me/vllm", "--ldm", "me/ldm@two"' in files["app.py"].decode()
    code = files["app.py"].decode().replace("lego.demo", "lego.frame").split("main([")[0]
    code += "\nimport llava.describing.describer, lego\nprint(llava.__file__, lego.__file__, main)"
    (out / "try.py").write_text(code)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "LEGO"))}
    line = [sys.executable, "try.py"]
    done = subprocess.run(line, cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{out}/vllm/llava" in done.stdout and f"{out}/lego" in done.stdout
    push(capfd, out, "me/page")
    assert "try.py" not in hub.repos["spaces/me/page"]
    assert hub.repos["spaces/me/page"]["app.py"] == files["app.py"]
    code, text = command(capfd, "space", out, *words)
    assert code == 2 and "is there already" in text
