"""A second rank that stays: takes one job per line from stdin, so that its imports are paid for once."""

import json
import os
import sys
import traceback
from pathlib import Path

import torch

from distill.run.train import train_rank

if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        os.environ.update(job["env"])
        try:
            train_rank(Path(job["folder"]))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        print("done", flush=True)
