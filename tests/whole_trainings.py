"""Started by test_worker.py, alone or through torchrun: trainings one after the other.

    python -m whole_trainings FOLDER ..

PAUSE makes each step so many seconds longer, that the process can be met at its work. With KILLED_AT each process kills
itself after that step. Rank 1 measures other dev values than rank 0, as processes with other arithmetic may.
"""

import itertools
import os
import signal
import sys
import time

from embedding_finetune.training import worker as training

PAUSE, KILLED_AT = float(os.environ.get("PAUSE", 0)), int(os.environ.get("KILLED_AT", -1))
original, rising = training.Trainer._checked, itertools.count()


def checked(self, loss):
    time.sleep(PAUSE)
    if self.state.global_step == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, loss)


training.Trainer._checked = checked
if os.environ.get("RANK") == "1":
    training.DevEvaluator.evaluate = lambda self, model: {"recall@10": 0.0, "mrr@10": float(next(rising))}
for folder in sys.argv[1:]:
    training.train(folder)
