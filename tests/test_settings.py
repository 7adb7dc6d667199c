"""Paths stand once: the settings file, and the environment over it."""

import os
from pathlib import Path

import pytest

from egogen.errors import EgoGenError
from egogen.settings import NAMES, load_settings, read_settings, require_paths

PROJECT = Path(__file__).resolve().parents[1]


def test_shipped_settings_name_everything():
    assert tuple(read_settings()) == NAMES


def test_the_environment_wins(tmp_path, monkeypatch):
    path = tmp_path / "own.env"
    path.write_text('# mine\n\nLEGO_DATASET=/a b/c\nexport LEGO_FEATURES="/f"\nLEGO_WEIGHTS=/w ')
    found = {"LEGO_DATASET": "/a b/c", "LEGO_FEATURES": "/f", "LEGO_WEIGHTS": "/w"}
    assert read_settings(path) == found
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LEGO_WEIGHTS", "/elsewhere")
    load_settings(path)
    assert os.environ["LEGO_DATASET"] == "/a b/c" and os.environ["LEGO_WEIGHTS"] == "/elsewhere"


def test_configs_follow(monkeypatch):
    from ldm.config import GenerateConfig, load_config

    monkeypatch.setenv("LEGO_DATASET", "/somewhere")
    config = load_config(GenerateConfig, [str(PROJECT / "configs" / "generate_ego4d.yaml")])
    assert config.data.edit_path == "/somewhere/ego4d_val.json"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$HOME/x", "/home/me/x"),
        ("${HOME}/x # mine", "/home/me/x"),
        ('"~/a b"', "/home/me/a b"),
        ('"$HOME/a #2" # two', "/home/me/a #2"),
        ("'~/$HOME'", "~/$HOME"),
        ("/a#b/c d", "/a#b/c d"),
        ("$LEGO_WEIGHTS/x", "/w/x"),
    ],
)
def test_values_are_read_as_a_shell_does(tmp_path, monkeypatch, text, value):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("LEGO_WEIGHTS", raising=False)
    path = tmp_path / "own.env"
    path.write_bytes(f"\ufeffLEGO_WEIGHTS=/w\r\nLEGO_DATASET={text}\r\n".encode())
    assert read_settings(path)["LEGO_DATASET"] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nLEGO_DATASET=$NOTHING/x", r"own.env:2: .*\$NOTHING is no variable that is set"),
        ("LEGO_DATASET=$(pwd)", r"own.env:1: .*\$ is no variable"),
        ("LEGO_DATASET=~nobody-here/x", "own.env:1: .*no such user"),
        ('LEGO_DATASET="/a"b', "own.env:1: .*expected NAME=VALUE"),
        ("LEGO_DATASET=''", "LEGO_DATASET is empty"),
        ("LEGO_DATASET", "own.env:1: 'LEGO_DATASET', expected NAME=VALUE"),
        ("LEGO_DATASET=", "LEGO_DATASET is empty"),
        ("LEGO_DATA=/x", "expected NAME=VALUE with NAME of LEGO_DATASET"),
        ("\nrm -rf x", "own.env:2"),
    ],
)
def test_bad_settings(tmp_path, text, message):
    (tmp_path / "own.env").write_text(text)
    with pytest.raises(EgoGenError, match=message):
        read_settings(tmp_path / "own.env")


def test_missing_file_and_paths(tmp_path):
    with pytest.raises(EgoGenError, match="settings cannot be read"):
        read_settings(tmp_path / "none.env")
    with pytest.raises(EgoGenError, match="a=.*none, b=.*gone"):
        require_paths({"a": tmp_path / "none", "b": tmp_path / "gone", "c": tmp_path, "d": None})
