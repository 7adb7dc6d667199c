"""Measuring generated frames. The documented entries are the scripts beside this file.

Each entry run as `python metrics/x.py` puts the project's folder, not this one, on the path, so
that no module here can stand before a library of the same name.
"""

from pathlib import Path

COMMANDS = Path(__file__).with_name("commands.toml")  # what the commands here take
