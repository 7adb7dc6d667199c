"""The entry that the released scripts call; attention is chosen with --attn there and here."""

from egogen.errors import run_command
from llava.train.train import main

if __name__ == "__main__":
    run_command(main)
