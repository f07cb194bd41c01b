"""Run by test_loss.py and test_distributed.py in a process of its own: so many processes that share their negatives.

`together` does one of two things: "gradients", the loss and the gradients of each of CASES, plain and cached;
"agreement", what check_same_inputs and check_shared say.
"""

import multiprocessing
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from batches_for_tests import batch_of, gradients, load
from tiny_training import ROWS, SCORED_ROWS
from torch.nn.parallel import DistributedDataParallel

from embedding_finetune.files import UserError
from embedding_finetune.models.multi_vector import new_projection
from embedding_finetune.training import distributed
from embedding_finetune.training.loss import grad_cache_step

JOINED = 8  # queries a step, of all processes
CASES = {"single_vector": {"distillation": "kl_div"}, "matryoshka": {"mrl_dims": (8, 32)},
         "multi_vector": {"architecture": "multi_vector"}, "both": {"architecture": "both"}}


def case_model(tiny, case, **options):
    torch.manual_seed(2)
    options |= CASES[case]
    if "architecture" in options:
        options |= {"projection": new_projection(32, 8), "added": [2, 3], "longest": 48}
    return load(tiny / "bert", **options).train()


def gradients_of(rank, world, tiny, results):
    """Two micro-batches are accumulated, of which the last alone is exchanged."""
    size, found = JOINED // world, {}
    for case in CASES:
        model = case_model(tiny, case, cross_device=True)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        for cached in (False, True):
            model.zero_grad()
            losses = []
            for step in range(2):
                first = step * JOINED + rank * size
                # The limits make sub-batches of different number in the processes.
                batch, _ = batch_of(tiny, scores=True, items=range(first, first + size), limit=1 + rank % 3)
                with wrapped.no_sync() if step == 0 else nullcontext():
                    if cached:
                        losses.append(grad_cache_step(model, wrapped, lambda loss: loss.backward(), **batch))
                    else:
                        loss = wrapped(**batch)["loss"]
                        loss.backward()
                        losses.append(loss.detach())
            dist.all_reduce(loss := torch.stack(losses).mean() / world)
            found[case, cached] = loss, gradients(model)
    if rank == 0:
        torch.save(found, results / f"gradients_{world}.pt")


def agreement_of(rank, world, tiny, results):
    """The last process has another file, and another folder for the second check."""
    last, lines = rank == world - 1, []
    own, of_another = tiny / ROWS, tiny / SCORED_ROWS
    (results / str(rank)).mkdir()
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    for check in (lambda: distributed.check_same_inputs({"settings": own}),
                  lambda: distributed.check_same_inputs({"training file": of_another if last else own}),
                  lambda: distributed.check_shared(results),
                  lambda: distributed.check_shared(results / "1" if last else results)):
        try:
            lines.append(check())
        except UserError as error:
            lines.append(str(error))
    torch.save(lines, results / f"said_{rank}.pt")


def run(rank, what, tiny, results, world):
    distributed.RANK, distributed.WORLD_SIZE, distributed.FILE_VISIBILITY_LAG = rank, world, 1
    dist.init_process_group("gloo", init_method=f"file://{results}/rendezvous_{world}", rank=rank, world_size=world)
    {"gradients": gradients_of, "agreement": agreement_of}[what](rank, world, Path(tiny), Path(results))
    dist.barrier()
    dist.destroy_process_group()


def together(what, tiny, results, world):
    """Let so many processes do it, and exit with their status."""
    started = [multiprocessing.get_context("fork").Process(target=run, args=(rank, what, tiny, results, int(world)))
               for rank in range(int(world))]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in started))
