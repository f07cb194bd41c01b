"""Started by test_launcher.py: trainings that end in ways of their own; prints a JSON object of what is said of each.

    python launches.py FOLDER PORT

The module that is launched is this file: a process leaves a file each time it starts, and ends as its flag says.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from embedding_finetune.training.distributed import LOST


def end(folder, how):
    """Exit with a status; kill the process; or let all wait for the last process, which exits with 1."""
    rank, folder = int(os.environ["RANK"]), Path(folder)
    (folder / f"{how}.{rank}.{time.time_ns()}").touch()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("last"):
        dist.init_process_group("gloo")
        dist.barrier()
        if rank < int(os.environ["WORLD_SIZE"]) - 1:
            try:
                dist.barrier()
            except RuntimeError:  # as training.worker does
                sys.exit(LOST)
    sys.exit(int(how.removeprefix("last")))


def said(folder, how, **settings):
    from embedding_finetune.files import UserError
    from embedding_finetune.training import launcher as launching
    launching.RENDEZVOUS_TIMEOUT = 3
    settings = {"gpus": 1, "nnodes": 1, "rdzv_endpoint": "", "max_restarts": 2, "trainer": ""} | settings
    began, line = time.monotonic(), None
    try:
        launching.launch(SimpleNamespace(**settings), "label", "launches", [str(folder), how])
    except UserError as error:
        line = str(error)
    except SystemExit as error:
        line = error.code
    return {"line": line, "starts": len(list(folder.glob(f"{how}.*"))), "seconds": time.monotonic() - began}


def main():
    folder, port = Path(sys.argv[1]), sys.argv[2]
    found = {how: said(folder, how) for how in ("0", "1", "75", "killed")}
    two = {"nnodes": 2, "rdzv_endpoint": f"localhost:{port}", "max_restarts": 0}
    found["alone"] = said(folder, "2", **two)
    found["silent"] = said(folder, "2", **two | {"rdzv_endpoint": "192.0.2.1:29400"})  # an address that nobody has
    found["unknown"] = said(folder, "2", **two | {"rdzv_endpoint": "no.machine.invalid:1"})
    if other := os.fork():
        found["given up"] = said(folder, "last1", **two)
        os.waitpid(other, 0)
        print(json.dumps(found))
    else:
        said(folder, "last1", **two)


if __name__ == "__main__":
    end(*sys.argv[1:]) if "RANK" in os.environ else main()
