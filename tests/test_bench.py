"""Every bench runs to its end and prints JSON; how fast anything is, no test says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--size", "tiny", "--repeats", "1")
BENCHES = {  # script: (arguments, a key of what is printed)
    "sampling": (TINY, "step_ratio"),
    "training": (TINY, "ratio"),
}


def test_every_bench_is_here():
    assert {path.stem for path in (ROOT / "bench").glob("*.py")} == set(BENCHES)
    line = "import " + ", ".join(f"bench.{name}" for name in BENCHES)
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, timeout=600).returncode == 0


def test_a_compiled_network_is_given_the_context_that_frames_are_made_with(monkeypatch):
    """With the held one, which compiled code does not take, it would be compiled in pieces."""
    import torch

    from bench.sampling import build, measure
    from ldm.config import GenerateConfig

    def mark(module):  # as compiled, which takes minutes
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", mark)
    model, config = build(GenerateConfig, "tiny", ["inference.compile=true"])
    told = []
    model.unet.register_forward_pre_hook(lambda _, given: told.append(type(given[2])))
    with torch.no_grad():
        measure(model.eval(), config.inference, batch=1, repeats=1)
    assert told[0] is not torch.Tensor and told[-1] is torch.Tensor


def test_training_is_measured_whole_and_with_adapters(capsys):
    from bench.training import main

    main([*TINY, "--whole", "model.params.lora.rank=2"])
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] and found["overrides"] == ["model.params.lora.rank=2"]
    losses = [found[side]["loss"] for side in ("baseline", "uncached", "ours")]
    assert losses[0] > losses[1] > losses[2]  # each side takes a step on the same batch


@pytest.mark.slow("benches, at small sizes")  # tens of seconds each
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_runs(name, tmp_path):
    arguments, key = BENCHES[name]
    command = [sys.executable, ROOT / f"bench/{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert key in found
