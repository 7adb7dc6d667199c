"""Stage 1: the vision-language model that describes actions in frames and yields its features."""

from pathlib import Path

COMMANDS = Path(__file__).with_name("commands.toml")  # what this stage's commands take
