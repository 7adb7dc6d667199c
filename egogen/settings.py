"""Where things are: `settings.env`, read once; variables of the environment win over its lines.

`python -m egogen.settings` prints them as a shell can read them, which the scripts do.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from egogen import layout
from egogen.errors import EgoGenError, run_command

SETTINGS = Path(__file__).resolve().parents[1] / "settings.env"
NAMES = ("LEGO_DATASET", "LEGO_FEATURES", "LEGO_WEIGHTS", "LEGO_OUTPUT")
MODEL_FOLDER = "llava-llama-2-13b-chat-forecasting-finetune"  # as released
# NAME=VALUE as in a shell: '...', "..." or neither, and a comment behind it.
LINE = re.compile(
    r"""(?:export\s+)?([A-Z_]+)=\s*(?:'([^']*)'|"([^"]*)"|([^'"\s#].*?)?)\s*(?:(?<=\s)\#.*)?"""
)


def read_settings(path: Path | None = None) -> dict[str, str]:
    """The lines NAME=VALUE of the file (LEGO_SETTINGS names another one).

    ~, $NAME and ${NAME} are replaced unless in single quotes. Raises EgoGenError, with the line,
    for anything else, names that nothing reads, and what cannot be replaced.
    """
    path = path or Path(os.environ.get("LEGO_SETTINGS") or SETTINGS)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EgoGenError(f"{path}: settings cannot be read ({error})") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if match is None or match.group(1) not in NAMES:
            expected = f"expected NAME=VALUE with NAME of {', '.join(NAMES)}"
            raise EgoGenError(f"{path}:{number}: {text!r}, {expected}")
        name, literal, quoted, plain = match.groups()
        value = literal or _expanded(quoted or plain or "", found, f"{path}:{number}: {name}")
        if not value:
            raise EgoGenError(f"{path}:{number}: {name} is empty, expected a path")
        found[name] = value
    return found


def _expanded(value: str, found: Mapping[str, str], where: str) -> str:
    """`value` with the home folder and the variables of earlier lines and of the environment."""
    try:
        value = Template(os.path.expanduser(value)).substitute({**found, **os.environ})
    except (KeyError, ValueError) as error:
        name = error.args[0] if isinstance(error, KeyError) else ""
        raise EgoGenError(f"{where}={value}: ${name} is no variable that is set") from None
    if value.startswith("~"):
        raise EgoGenError(f"{where}={value}: there is no such user, expected ~/ or a path")
    return value


def load_settings(path: Path | None = None) -> None:
    """Put the settings into the environment, where configs and subprocesses find them."""
    for name, value in read_settings(path).items():
        if not os.environ.get(name):
            os.environ[name] = value


def require_paths(named: Mapping[str, str | os.PathLike | None]) -> None:
    """Raises EgoGenError that names, as 'NAME=PATH', all paths that do not exist or are empty.

    Those that are None are not asked for.
    """
    missing = [
        f"{name}={path}" if path else f"{name} (not set)"
        for name, path in named.items()
        if path is not None and not (path and Path(path).exists())
    ]
    if missing:
        raise EgoGenError(f"no such file or folder: {', '.join(missing)}")


def setting(name: str) -> Path:
    """One of NAMES as a path: the environment's value, or else the file's."""
    load_settings()
    if name not in os.environ:
        raise EgoGenError(f"{name}: neither in the environment nor in {SETTINGS.name}")
    return Path(os.environ[name])


def stage_1_paths(dataset: str, split: str) -> dict[str, Path]:
    """Where the scripts of stage 1 look, and write, where no path is given.

    Features made here do not go where the released ones are: nothing would keep them apart there.
    """
    data, home = setting("LEGO_DATASET"), setting("LEGO_OUTPUT") / "vllm" / "out" / dataset
    pretrained = layout.released(setting("LEGO_WEIGHTS") / "pretrained/llava_pretrained")
    return {
        "pretrained": Path(pretrained),
        "model_path": home / MODEL_FOLDER,
        "image_dir": layout.frame_folder(data, dataset, split),
        "action_label": layout.action_file(data, dataset, split),
        "save_path": home / "described" / MODEL_FOLDER / split,
        "save_image_feature_path": home / "features" / "image" / split,
        "save_text_feature_path": home / "features" / "text" / split,
    }


def main(argv: Sequence[str]) -> None:
    """`python -m egogen.settings [DATASET SPLIT]`: lines NAME=VALUE, quoted for a shell."""
    named: dict[str, Path] = {name: setting(name) for name in NAMES}
    if argv:
        dataset, split = (*argv, "val")[:2]
        if dataset not in layout.DATASETS or split not in layout.SPLITS:
            expected = f"{' or '.join(layout.DATASETS)}, then {' or '.join(layout.SPLITS)}"
            raise EgoGenError(f"{dataset} {split}: expected {expected}")
        named |= stage_1_paths(dataset, split)
    for name, path in named.items():
        print(f"{name}={shlex.quote(str(path))}")


if __name__ == "__main__":
    run_command(main)
