"""Forms of annotation, official ones and the project's own table: each as rows."""

import pkgutil
import tomllib
from pathlib import Path

from egogen.build.rows import Options, Table

FORMS = tomllib.loads(Path(__file__).with_name("forms.toml").read_text(encoding="utf-8"))


def read_form(name: str, path: Path, options: Options) -> Table:
    """Rows of a file and what is left out of it. Raises EgoGenError: it is not of that form."""
    return pkgutil.resolve_name(FORMS[name]["read"])(path, options)
