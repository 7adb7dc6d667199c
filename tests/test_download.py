"""Downloads from the hub against a server that speaks its interface, with faults of every kind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_commands import errors, local_hub, run  # noqa: F401
from hub_server import hub_server, sha256
from other_process import held
from zip_archives import packed

from egogen.download import __main__ as download
from egogen.download import fetch as fetching
from egogen.errors import EgoGenError

PROJECT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
DATASET = "datasets/bolinlai/LEGO-Dataset"
CURATED = "curation_from_gpt/ego4d_for_tuning_forecasting.json"
FRAME = "EgoGen/ego4d.fho/val/clip/0/frame.jpg"


@pytest.fixture
def dataset(server, tmp_path):
    """The files of the dataset's repository."""
    frames = packed(tmp_path / "make" / "EgoGen.zip", {FRAME: os.urandom(1 << 20)})
    server.repos[DATASET] = {
        ".gitattributes": b"*.zip",
        "README.md": b"# card",
        "EgoGen.zip": frames,
        "ego4d_train.json": b"{}",
        "ego4d_val.json": b"{}",
        CURATED: b"[]",
    }
    return server.repos[DATASET]


def files_of(folder: Path) -> list[str]:
    """What a user sees: records and parts are hidden."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    hidden = (".downloads", ".EgoGen")
    return sorted(str(path) for path in found if not any(p.startswith(hidden) for p in path.parts))


# --- a repository


def test_what_is_released_arrives_once(dataset, server, tmp_path, capfd):
    out = tmp_path / "out"
    code, text = run(f"dataset {out} --dry-run", capfd)
    assert code == 0 and f"frames -> {out}/EgoGen.zip: unpack, fetch {server.address}" in text
    assert not out.exists() and not server.asked("resolve")
    assert run(f"dataset {out}", capfd)[0] == 0
    assert files_of(out) == sorted([FRAME, CURATED, "ego4d_train.json", "ego4d_val.json"])
    server.seen.clear()
    code, text = run(f"dataset {out}", capfd)
    assert code == 0 and text.count("kept: ") == 3 and not server.seen
    assert run(f"gpt_curated_data {out}", capfd)[0] == 0 and not server.seen  # of the same folder
    assert run(f"dataset {out} --verify", capfd)[0] == 0


def test_a_dropped_connection_goes_on_where_it_broke_off(dataset, server, tmp_path, capfd):
    server.cuts["cdn/"] = [400_000, 300_000, 0]
    assert run(f"dataset {tmp_path}/out --only frames", capfd)[0] == 0
    (first, *ranges) = server.asked("cdn/")
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges]
    assert first is None and starts == sorted(starts) and 300_000 < starts[0] < starts[1]
    assert files_of(tmp_path / "out") == [FRAME]


def test_a_later_call_goes_on(dataset, server, tmp_path, capfd):
    server.cuts["cdn/"] = [700_000, *[0] * 9]
    code, text = run(f"dataset {tmp_path}/out --only frames", capfd)
    assert code == 1 and "run it again to go on" in errors(text)[0]
    server.cuts.clear(), server.seen.clear()
    assert run(f"dataset {tmp_path}/out --only frames", capfd)[0] == 0
    assert int(server.asked("cdn/")[0].removeprefix("bytes=").rstrip("-")) > 600_000


def test_a_file_that_changed_in_between_begins_again(dataset, server, tmp_path, capfd):
    server.cuts["cdn/"] = [700_000, *[0] * 9]
    run(f"dataset {tmp_path}/out --only frames", capfd)
    server.cuts.clear(), server.seen.clear()
    dataset["EgoGen.zip"] = packed(tmp_path / "make" / "b.zip", {FRAME: CONTENT})
    assert run(f"dataset {tmp_path}/out --only frames", capfd)[0] == 0
    assert server.asked("cdn/") == [None]
    assert (tmp_path / "out" / FRAME).read_bytes() == CONTENT


def test_wrong_bytes_are_refused(dataset, server, tmp_path, capfd):
    """Of the right size, large ones (sha256) and small ones (git's sha1)."""
    zipped = dataset["EgoGen.zip"]
    server.lies = {"EgoGen.zip": zipped[:-1] + b"x", "ego4d_val.json": b"[]"}
    code, text = run(f"dataset {tmp_path}/out", capfd)
    assert code == 1 and len(errors(text)) == 2
    assert f"EgoGen.zip gave other bytes (digest {sha256(zipped[:-1] + b'x')})" in errors(text)[0]
    assert f"expected {sha256(zipped)}" in text and "ego4d_val.json gave other bytes" in text
    assert files_of(tmp_path / "out") == sorted([CURATED, "ego4d_train.json"])
    server.lies = {}
    assert run(f"dataset {tmp_path}/out", capfd)[0] == 0  # nothing is left to be mended by hand


def test_a_server_that_is_busy_is_asked_again(dataset, server, tmp_path, capfd):
    server.statuses = {"api/datasets": [503, 429], "tree": [503], "resolve": [429, 503, 500]}
    server.statuses["cdn/"] = [502]
    assert run(f"dataset {tmp_path}/out", capfd)[0] == 0
    assert not any(server.statuses.values())


@pytest.mark.parametrize(
    ("status", "path", "said"),
    [
        (401, "api/datasets", "expected one that is there and open: HF_TOKEN"),
        (403, "api/datasets", "its terms accepted"),
        (404, "api/datasets", "expected one that is there"),
        (404, "resolve", "EgoGen.zip answers 404"),
        (403, "cdn/", "EgoGen.zip answers 403"),
        (410, "resolve", "answers 410; run it again"),
    ],
)
def test_refusals_are_one_line(dataset, server, tmp_path, capfd, status, path, said):
    server.statuses[path] = [status] * 20
    code, text = run(f"dataset {tmp_path}/out --only frames", capfd)
    assert code == 1 and len(errors(text)) == 1
    assert said in text and DATASET in errors(text)[0] and str(status) in errors(text)[0]
    assert files_of(tmp_path / "out") == []


def test_a_token_opens_a_closed_repository(dataset, server, tmp_path, capfd, monkeypatch):
    """And goes to no other host, as to that of the files' contents."""
    server.token = "hf_secret"
    code, text = run(f"dataset {tmp_path}/out --only frames", capfd)
    assert code == 1 and "401" in errors(text)[0] and "HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run(f"dataset {tmp_path}/out --only frames", capfd)[0] == 0
    assert "hf_secret" not in "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json"))


def test_no_network_is_said_before_anything_is_done(server, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, text = run(f"metric_weights {tmp_path}/out", capfd)
    assert code == 2 and len(errors(text)) == 1 and "LEGO-Metrics: no connection" in text
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, text = run(f"dataset {tmp_path}/out", capfd)
    assert code == 2 and "HF_HUB_OFFLINE is set" in text and not server.seen


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (b"<html>log in</html>", "gave no list of files"),
        (b'[{"type": "file", "path": "EgoGen.zip"}]', "gave no list of files"),
        (b"[]", "has no *.zip"),
        (b'[{"type": "file", "path": "../a.zip", "size": 1, "oid": "0"}]', "'../a.zip' leaves"),
        (b'[{"type": "file", "path": "/a.zip", "size": 1, "oid": "0"}]', "'/a.zip' leaves"),
    ],
)
def test_a_hub_that_says_nonsense(dataset, server, tmp_path, capfd, monkeypatch, listing, said):
    answer = server.RequestHandlerClass.say

    def say(self, status, body, headers=None):
        answer(self, status, listing if "tree" in self.path else body, headers)

    monkeypatch.setattr(server.RequestHandlerClass, "say", say)
    code, text = run(f"dataset {tmp_path}/out --only frames", capfd)
    assert code == 1 and len(errors(text)) == 1 and said in text
    assert files_of(tmp_path) == ["make/EgoGen.zip"]


def test_what_a_repository_lacks_is_said_with_what_it_has(server, tmp_path, capfd):
    server.repos["bolinlai/LEGO-Metrics"] = {"README.md": b"", "other.pth": b"x"}
    code, text = run(f"metric_weights {tmp_path}/out --only egovlp.pth", capfd)
    assert code == 1 and "has no egovlp.pth, only README.md, other.pth" in text


def test_long_lists_come_in_pages(dataset, server, tmp_path, capfd):
    server.page = 1
    assert run(f"dataset {tmp_path}/out", capfd)[0] == 0
    assert len(files_of(tmp_path / "out")) == 4


def test_too_little_space(dataset, server, tmp_path, capfd, monkeypatch):
    """An archive needs room beside what comes out of it."""
    free = int(len(dataset["EgoGen.zip"]) * 1.5)
    usage = shutil._ntuple_diskusage(10**9, 10**9, free)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage)
    code, text = run(f"dataset {tmp_path}/out", capfd)
    assert code == 2 and "the whole download needs 0.0 GB" in text and not server.asked("resolve")
    assert run(f"dataset {tmp_path}/out --only actions curated", capfd)[0] == 0
    (tmp_path / "out/EgoGen.zip").write_bytes(dataset["EgoGen.zip"])  # what is there takes none
    assert run(f"dataset {tmp_path}/out", capfd)[0] == 0


def test_a_second_download_into_a_folder_says_so(dataset, tmp_path, capfd):
    with held(tmp_path / "out" / ".downloads" / "lock"):
        code, text = run(f"dataset {tmp_path}/out", capfd)
    assert code == 2 and "another process is" in text


def test_split_features(server, tmp_path, capfd):
    if shutil.which("zip") is None:
        pytest.skip("Debian's zip is not installed")
    model = "llava-llama-2-13b-chat-forecasting-finetune-ckpt450"
    arrays = {f"{model}/val/clip/0/{n}.npy": CONTENT[: 600_000 + n] for n in range(3)}
    make = tmp_path / "make"
    for name, content in arrays.items():
        (make / name).parent.mkdir(parents=True, exist_ok=True)
        (make / name).write_bytes(content)
    line = ["zip", "-q", "-0", "-s", "700k", "-r", f"{model}-split.zip", model]
    subprocess.run(line, cwd=make, check=True)
    files = {f"vllm_image_feature/{p.name}": p.read_bytes() for p in make.glob("*.z*")}
    text_array = {f"{model}/val/clip/0/0.npy": b"text"}
    files[f"vllm_text_feature/{model}.zip"] = packed(tmp_path / "text.zip", text_array)
    assert len(files) == 4
    server.repos["datasets/bolinlai/LEGO-VLLM-Features-Ego4D"] = files
    words = f"vllm_features {tmp_path}/out --only ego4d"
    assert run(words, capfd)[0] == 0
    root = tmp_path / "out/LEGO-VLLM-Features-Ego4D"
    for name, content in arrays.items():
        assert (root / "vllm_image_feature" / name).read_bytes() == content
    assert len(files_of(tmp_path / "out")) == 4
    server.seen.clear()
    assert run(words, capfd)[0] == 0 and not server.seen
    assert run(f"{words} --verify", capfd)[0] == 0


def test_metric_weights(server, tmp_path, capfd):
    """What the metrics read; EgoVLP's files lie with the others."""
    tokens = packed(tmp_path / "make/d.zip", {"distilbert-base-uncased/vocab.txt": b"[PAD]"})
    names = ("egovlp.pth", "epic_mir_plus.pth", "jx_vit_base_p16_224-80ecf9dd.pth")
    names += ("model_base_caption_capfilt_large.pth", "model_large_caption.pth")
    server.repos["bolinlai/LEGO-Metrics"] = {name: name.encode() for name in names}
    server.repos["bolinlai/LEGO-Metrics"]["distilber-base-uncased.zip"] = tokens
    words = f"metric_weights {tmp_path}/out --only distilbert-base-uncased {' '.join(names[:2])}"
    assert run(f"{words} {' '.join(names[3:])}", capfd)[0] == 0
    expected = {*names, "distilbert-base-uncased/vocab.txt"} - {names[2]}
    assert files_of(tmp_path / "out") == sorted(expected)


def test_weights_by_suffix_and_folder(server, tmp_path, capfd):
    server.repos["bolinlai/LEGO-Ego4D"] = {
        "README.md": b"",
        "VLLM/llava-llama-2-13b-chat-forecasting-finetune/pytorch_model.bin": b"vllm",
        "VLLM/llava-llama-2-13b-chat-forecasting-finetune/config.json": b"{}",
        "LDM/ego4d_diffusion_with_vllm_feature.ckpt": b"ldm",
        "LDM/scaleup_training_ego4d_eval.ckpt": b"scaleup",
    }
    server.repos["bolinlai/SD1.5-pretrained"] = {"v1-5-pruned-emaonly.ckpt": b"sd", ".git": b""}
    llava = {"config.json": b"{}", "pytorch_model-1.bin": b"x", "README.md": b""}
    server.repos["liuhaotian/llava-llama-2-13b-chat-lightning-preview"] = llava
    out, ours = tmp_path / "out", "LEGO-Ego4D"
    assert run(f"model_weights {out} --only ldm_ego4d", capfd)[0] == 0
    assert files_of(out) == [f"{ours}/LDM/ego4d_diffusion_with_vllm_feature.ckpt"]
    words = f"model_weights {out} --only vllm_ego4d ldm_scaleup_ego4d llava_pretrained"
    assert run(f"{words} stable_diffusion", capfd)[0] == 0
    assert files_of(out) == sorted(
        [
            *(f"{ours}/{name}" for name in server.repos["bolinlai/LEGO-Ego4D"] if name[0] != "R"),
            "pretrained/llava_pretrained/config.json",
            "pretrained/llava_pretrained/pytorch_model-1.bin",
            "pretrained/stable_diffusion/v1-5-pruned-emaonly.ckpt",
        ]
    )


@pytest.mark.parametrize("cut", ["note", "unpack"])
def test_stopped_at_any_call_it_goes_on(dataset, tmp_path, capfd, monkeypatch, cut):
    place = f"egogen.download.group.{'Item.note' if cut == 'note' else 'unpack'}"
    whole = download.fetch_group.__globals__["Item"].note if cut == "note" else None
    whole = whole or download.fetch_group.__globals__["unpack"]
    for survives in range(12):
        calls = iter(range(100))

        def breaking(*arguments, calls=calls, survives=survives, **named):
            if next(calls) == survives % 4:
                raise EgoGenError("stopped")
            return whole(*arguments, **named)

        monkeypatch.setattr(place, breaking)
        if run(f"dataset {tmp_path}/out", capfd)[0] == 0:
            break
    monkeypatch.setattr(place, whole)
    assert run(f"dataset {tmp_path}/out", capfd)[0] == 0
    assert files_of(tmp_path / "out") == sorted(
        [FRAME, CURATED, "ego4d_train.json", "ego4d_val.json"]
    )
    assert run(f"dataset {tmp_path}/out --verify", capfd)[0] == 0


def test_files_that_changed_or_went_are_seen(dataset, server, tmp_path, capfd):
    out = tmp_path / "out"
    assert run(f"dataset {out} --verify", capfd)[1].count("not downloaded") == 3
    run(f"dataset {out}", capfd)
    (out / "ego4d_val.json").write_bytes(b"[]")  # of the same size
    (out / FRAME).unlink()
    code, text = run(f"dataset {out} --verify", capfd)
    assert code == 1 and len(errors(text)) == 2 and "is gone" in text
    assert "val.json: not the bytes that were downloaded; remove it to fetch it anew" in text
    code, text = run(f"dataset {out} --only frames", capfd)
    assert code == 0 and "files of it are gone" in text and (out / FRAME).exists()
    (out / "ego4d_val.json").write_bytes(b"{} ")
    code, text = run(f"dataset {out}", capfd)
    assert code == 1 and "remove it to fetch it anew" in text
    assert (out / "ego4d_val.json").read_bytes() == b"{} "  # of one's own, perhaps


def test_files_that_were_fetched_by_hand_are_kept(dataset, server, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "EgoGen.zip").write_bytes(dataset["EgoGen.zip"])
    code, text = run(f"dataset {tmp_path}/out --only frames", capfd)
    assert code == 0 and "there: EgoGen.zip" in text and not server.asked("resolve")
    assert files_of(tmp_path / "out") == [FRAME]


def test_an_archive_that_was_removed_comes_again(dataset, tmp_path, capfd, monkeypatch):
    unpack = "egogen.download.group.unpack"
    with monkeypatch.context() as stopped:
        stopped.delattr(unpack)
        with pytest.raises(NameError):
            download.main(["dataset", str(tmp_path / "out"), "--only", "frames"])
    (tmp_path / "out/EgoGen.zip").unlink()
    assert run(f"dataset {tmp_path}/out --only frames", capfd)[0] == 0
    assert files_of(tmp_path / "out") == [FRAME]


def test_through_a_link_to_another_disk(dataset, tmp_path, capfd):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run(f"dataset {tmp_path}/out", capfd)[0] == 0
    assert run(f"dataset {tmp_path}/out --verify", capfd)[0] == 0
    assert (tmp_path / "disk" / FRAME).exists()


@pytest.mark.parametrize("source", ["hub", "dropbox"])
@pytest.mark.parametrize(
    "name", ["dataset", "gpt_curated_data", "vllm_features", "model_weights", "metric_weights"]
)
def test_scripts(server, name, source, tmp_path):
    """As a user starts them; every repository that they name is asked for."""
    line = ["bash", f"scripts/download_{name}.sh", str(tmp_path / "out"), "--dry-run"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [*line, "--source", source], cwd=PROJECT, capture_output=True, text=True, env=environment
    )
    assert not (tmp_path / "out").exists() and "Traceback" not in done.stderr
    if source == "dropbox":
        assert done.returncode == (1 if name == "metric_weights" else 0)
        assert f"-> {tmp_path}/out/" in done.stdout and "https://" in done.stdout
    else:
        assert done.returncode == 1 and "404; expected one that is there" in done.stdout
        assert {path for _, path, _, _ in server.seen} >= {
            "api/datasets/bolinlai/LEGO-Dataset"
        } or (server.seen and name not in ("dataset", "gpt_curated_data"))


def test_hub_token_stays_with_the_hub(dataset, server, tmp_path, capfd, monkeypatch):
    """The contents of large files lie on another host, which the token is not for."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_server() as other:
        other.repos["storage"] = dataset
        other.cuts = {}
        answer = server.RequestHandlerClass.say

        def say(self, status, body, headers=None):
            if "Location" in (headers or {}) and self.server is server:
                place = headers["Location"].partition("/cdn/")[2]
                headers["Location"] = f"{other.address}/cdn/{place}"
            answer(self, status, body, headers)

        monkeypatch.setattr(server.RequestHandlerClass, "say", say)
        assert run(f"dataset {tmp_path}/out --only frames", capfd)[0] == 0
        assert [token for _, _, _, token in other.seen] == [None]
    assert "Bearer hf_secret" in {token for _, _, _, token in server.seen}
