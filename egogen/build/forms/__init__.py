"""Forms of annotation, official ones and the project's own table: each as rows."""

import pkgutil
from pathlib import Path

from egogen.build.rows import Options, Table

# Name of a form -> module and function that reads a file of it: (path, options) -> Table.
FORMS = {
    "csv": "egogen.build.table:read_table",
    "pairs": "egogen.build.pairs:read_pairs",
    "epic100": "egogen.build.forms.tables:read_epic",
    "ego4d-fho": "egogen.build.forms.ego4d:read_fho",
    "egoexo4d": "egogen.build.forms.lists:read_egoexo4d",
    "holoassist": "egogen.build.forms.lists:read_holoassist",
    "hd-epic": "egogen.build.forms.tables:read_hd_epic",
    "assembly101": "egogen.build.forms.tables:read_assembly101",
    "ssv2": "egogen.build.forms.lists:read_ssv2",
}


def read_form(name: str, path: Path, options: Options) -> Table:
    """Rows of a file and what is left out of it. Raises EgoGenError: it is not of that form."""
    return pkgutil.resolve_name(FORMS[name])(path, options)
