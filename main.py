"""Train stage 2 (entry); `ldm/training/` does it.

python main.py --name lego_ego4d --base configs/train_ego4d.yaml --train --gpus 0,1,2,3,4,5,6,7
"""

from egogen.errors import run_command
from ldm.training.__main__ import main

if __name__ == "__main__":
    run_command(main)
