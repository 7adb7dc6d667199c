"""Train stage 2 (entry); `ldm/training/` does it.

python main.py --name lego_ego4d --base configs/train_ego4d.yaml --train --gpus 0,1,2,3,4,5,6,7
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this project's code, whatever is there

from egogen.errors import run_command  # noqa: E402
from ldm.training.__main__ import main  # noqa: E402

if __name__ == "__main__":
    run_command(main)
