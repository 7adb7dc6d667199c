"""Pickled tables: what pandas writes is read, what a stranger puts in runs nothing."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from egogen.build.records import read_pickle
from egogen.errors import EgoGenError

pandas = pytest.importorskip("pandas")
DATA = Path(__file__).parent / "data" / "annotations"


def frame() -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "narration": ["Pick up the mug.", None, "Wörter"],
            "start": [1.5, float("nan"), 2.0],
            "number": [1, 2, 3],
            "masked": pandas.array([0.5, None, 2.5], dtype="Float64"),
            "whole": pandas.array([1, None, 3], dtype="Int64"),
            "seen": [True, False, True],
            "hand": pandas.Categorical(["left", "right", "left"]),
            "text": pandas.array(["a", None, "c"], dtype="string[python]"),
            "pairs": [[("pick-up", "mug")], [], None],
            "scalar": [np.float64(1.5), np.int64(3), None],
        }
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("change", ["whole", "every second", "own index"])
def test_what_pandas_writes_comes_back(protocol, change, tmp_path):
    table = frame()
    table = table.iloc[::2] if change == "every second" else table
    table = table.set_index("number") if change == "own index" else table
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(table, protocol))
    rows = [values for _, values in read_pickle(tmp_path / "t.pkl")]
    assert len(rows) == len(table)
    assert rows[0] == {
        "narration": "Pick up the mug.",
        "start": 1.5,
        "number": 1,
        "masked": 0.5,
        "whole": 1,
        "seen": True,
        "hand": "left",
        "text": "a",
        "pairs": [("pick-up", "mug")],
        "scalar": 1.5,
    }
    if change == "whole":
        assert (
            rows[1]["narration"] is rows[1]["start"] is rows[1]["text"] is rows[1]["whole"] is None
        )
        assert rows[2]["narration"] == "Wörter" and rows[2]["pairs"] is None


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def called(name: str, *arguments: str) -> bytes:
    """A pickle that calls a global, "module name", with texts."""
    return (
        b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(map(text, arguments)) + b"tR."
    )


class Called:
    """Whoever unpickles this has made a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


HOSTILE = {
    "a command": called("os system", "mkdir executed"),
    "posix": called("posix mkdir", "executed"),
    "eval": called("builtins eval", "__import__('os').mkdir('executed')"),
    "exec of Python 2": called("__builtin__ exec", "import os; os.mkdir('executed')"),
    "getattr": called("builtins getattr", "a", "upper"),
    "attribute of what is allowed": called("pandas DataFrame.eval", "1 + 1"),
    "a module in a name": b"\x80\x04" + text("pandas") + text("io.common.os.mkdir") + b"\x93.",
    "another function of a module": called("numpy load", "executed.npy"),
    "numpy's loader": called("numpy.core.multiarray fromfile", "executed"),
    "pandas' pickles": called("pandas read_pickle", "executed.pkl"),
    "a codec": called("_codecs decode", "executed", "rot13"),
    "importlib": called("importlib import_module", "this"),
    "INST": b"(" + text("mkdir executed") + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text("mkdir executed") + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(" + text("mkdir") + b"t\x81.",
    "persistent": b"P1\n.",
    "extension": b"\x80\x02\x82\x01.",
    "state for a class": b"cpandas\nDataFrame\n(N}" + text("columns") + text("x") + b"stb.",
    "attributes for a class": b"cpandas\nIndex\n(N}" + text("x") + text("x") + b"stb.",
    "state for a function": b"cpandas.core.indexes.base\n_new_Index\n}" + text("a") + b"Nsb.",
    "frame of nothing": b"\x80\x02cpandas\nDataFrame\n)\x81}" + text("_mgr") + b"K\x01sb.",
    "a list": pickle.dumps([1, 2]),
    "a text": b"clip,action\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_payload_is_named_and_never_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(vars(pandas.DataFrame)), dict(vars(pandas.Index))
    (tmp_path / "t.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(EgoGenError, match=r"t\.pkl: not a pickled table of pandas") as refused:
        read_pickle(tmp_path / "t.pkl")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.pkl"]
    assert (dict(vars(pandas.DataFrame)), dict(vars(pandas.Index))) == before
    if " for a " in name:
        assert "it changes a class or a function" in str(refused.value)


def test_a_payload_in_a_cell(tmp_path):
    table = frame().assign(pairs=[Called(tmp_path / "executed")] * 3)
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(table))
    with pytest.raises(EgoGenError, match=r"it refers to posix\.mkdir|it refers to nt\.mkdir"):
        read_pickle(tmp_path / "t.pkl")
    assert not (tmp_path / "executed").exists()


def test_texts_that_lead_out_of_their_memory(tmp_path):
    """pyarrow itself would read what lies behind its buffers."""
    pytest.importorskip("pyarrow")
    texts = pandas.array(["one", "two"], dtype="string[pyarrow]")
    whole = pickle.dumps(pandas.DataFrame({"narration": texts}))
    offsets = struct.pack("<3q", 0, 3, 6)
    assert whole.count(offsets) == 1
    (tmp_path / "t.pkl").write_bytes(whole)
    assert len(read_pickle(tmp_path / "t.pkl")) == 2
    (tmp_path / "t.pkl").write_bytes(whole.replace(offsets, struct.pack("<3q", 0, 3, 1 << 40)))
    with pytest.raises(EgoGenError, match="not a pickled table"):
        read_pickle(tmp_path / "t.pkl")


def test_cut_short(tmp_path):
    whole = (DATA / "hd_epic_pandas_2.2.pkl").read_bytes()
    for length in range(0, len(whole), 41):
        (tmp_path / "t.pkl").write_bytes(whole[:length])
        with pytest.raises(EgoGenError, match="not a pickled table"):
            read_pickle(tmp_path / "t.pkl")
