"""The Llama tokenizer of a folder: sentencepiece (as released) or the tokenizers library."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer

from egogen import EgoGenError, atomic_path, read_object, write_json
from llava.conversation import IMAGE_MARK

MODEL_FILE, FAST_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
ADDED_FILE = "added_tokens.json"
FILES = (MODEL_FILE, FAST_FILE, CONFIG_FILE, "special_tokens_map.json", ADDED_FILE)
SPACE = "\u2581"  # how sentencepiece writes a space


class TextTokenizer:
    """Text <-> ids. Marks (`<s>`, `</s>`, `<unk>`, added tokens) inside text become their own ids.

    Ids up to `len(self)` may be produced; a model may have more rows. Those of a hub folder's
    image mark and of what was added with it are never produced.
    """

    unk_id, bos_id, eos_id = 0, 1, 2
    pad_id = 0  # as in the released code: the unknown mark pads
    rows: int | None = None  # of the model's embeddings, where a model is known
    base_size: Callable[[], int]  # how many ids there are without what was added later
    _decode_plain: Callable[[list[int]], str]  # text of ids without marks

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.added: dict[str, int] = read_object(self.folder / ADDED_FILE, needed=False)

    @property
    def marks(self) -> dict[str, int]:
        """Those that stand for themselves in text: an image is IMAGE_ID here, not a mark."""
        added = {mark: number for mark, number in self.added.items() if mark != IMAGE_MARK}
        return {"<unk>": self.unk_id, "<s>": self.bos_id, "</s>": self.eos_id, **added}

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without a beginning mark of its own."""
        ids, marks = [], self.marks
        longest_first = map(re.escape, sorted(marks, key=len, reverse=True))
        for index, part in enumerate(re.split(f"({'|'.join(longest_first)})", text)):
            if part in marks:
                ids.append(marks[part])
            elif part:
                ids += self._encode_plain(part, first=index == 0)
        if ids and self.rows is not None and max(ids) >= self.rows:
            mark = next((mark for mark in marks if marks[mark] == max(ids)), "")
            found = f"the text holds the piece {mark!r} of id {max(ids)}"
            expected = f"expected ids below {self.rows}, the rows of the model's embeddings"
            raise EgoGenError(f"{self.folder}: {found}, {expected}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without marks; bytes that are no UTF-8 become the replacement character."""
        special = set(self.marks.values())
        return self._decode_plain([int(i) for i in ids if i not in special and i < len(self)])

    def __len__(self) -> int:
        size = max(self.base_size(), *(number + 1 for number in self.marks.values()))
        return min(size, self.added.get(IMAGE_MARK, size))

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        raise NotImplementedError


class SentencePieceTokenizer(TextTokenizer):
    """The slow LLaMA tokenizer of transformers 4.31, both of its behaviours.

    `legacy` (its default): every piece between marks gets a space in front, else only the first.
    """

    def __init__(self, folder: str | os.PathLike, legacy: bool = True):
        super().__init__(folder)
        self.legacy = legacy
        path = self.folder / MODEL_FILE
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise EgoGenError(f"{path}: not a sentencepiece model ({error})") from None
        self.bos_id, self.eos_id = self.pieces.bos_id(), self.pieces.eos_id()
        self._decode_plain, self.base_size = self.pieces.decode, self.pieces.get_piece_size

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        if self.legacy or first or text.startswith((" ", SPACE)):
            return self.pieces.encode(text)
        pieces = self.pieces.encode(text, out_type=str)
        if pieces and pieces[0].startswith(SPACE):
            pieces = ([pieces[0][1:]] if len(pieces[0]) > 1 else []) + pieces[1:]
        return [self.pieces.piece_to_id(piece) for piece in pieces]


class FastTokenizer(TextTokenizer):
    """A `tokenizer.json` of the tokenizers library, for folders without a sentencepiece model."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(folder)
        path = self.folder / FAST_FILE
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise EgoGenError(f"{path}: not a tokenizer file ({error})") from None
        marks = [self.tokenizer.token_to_id(name) for name in ("<unk>", "<s>", "</s>")]
        ids = [number for number in marks if number is not None]
        if len(ids) < len(marks):
            raise EgoGenError(f"{path}: expected a Llama vocabulary with <unk>, <s> and </s>")
        self.unk_id, self.bos_id, self.eos_id = ids
        self._decode_plain = partial(self.tokenizer.decode, skip_special_tokens=True)
        self.base_size = partial(self.tokenizer.get_vocab_size, with_added_tokens=False)
        added = self.tokenizer.get_added_tokens_decoder()
        self.added.update({token.content: number for number, token in added.items()})

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def load_tokenizer(folder: str | os.PathLike) -> TextTokenizer:
    """The tokenizer of a checkpoint folder, as its tokenizer_config.json says."""
    folder = Path(folder)
    if (folder / MODEL_FILE).exists():
        settings = read_object(folder / CONFIG_FILE, needed=False)
        return SentencePieceTokenizer(folder, settings.get("legacy") is not False)
    if (folder / FAST_FILE).exists():
        return FastTokenizer(folder)
    raise EgoGenError(f"{folder}: holds no tokenizer, expected {MODEL_FILE} or {FAST_FILE}")


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Those that are there, from one checkpoint folder into another."""
    for old, new in ((source / name, target / name) for name in names):
        if old.exists() and old.resolve() != new.resolve():
            with atomic_path(new) as temporary:
                shutil.copyfile(old, temporary)


def write_tokenizer_config(folder: str | os.PathLike, max_length: int, legacy: bool = True) -> None:
    """tokenizer_config.json beside a fresh tokenizer.model, as Llama tokenizers have it."""
    fields = read_object(Path(__file__).with_name(CONFIG_FILE))
    fields |= {"model_max_length": max_length, "legacy": legacy}
    write_json(Path(folder) / CONFIG_FILE, fields, indent=2)
