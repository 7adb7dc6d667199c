"""EgoGen-mini: first-person table scenes in the released layout, and an oracle for them."""

from pathlib import Path

COMMANDS = Path(__file__).with_name("commands.toml")  # what the commands here take
