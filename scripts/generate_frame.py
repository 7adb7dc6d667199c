"""`python -m lego.frame` under the name that README had first."""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(PROJECT), str(PROJECT / "vllm")]

from egogen.errors import run_command  # noqa: E402
from lego.frame import main  # noqa: E402

if __name__ == "__main__":
    run_command(main)
