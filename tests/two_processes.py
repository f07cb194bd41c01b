"""Started by test_loss.py: gradients of two processes that share their negatives.

    python two_processes.py TINY RESULTS
"""

import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from batches_for_tests import batch_of, gradients, load
from torch.nn.parallel import DistributedDataParallel

from embedding_finetune.training.loss import grad_cache_step


def run(rank, tiny, results):
    dist.init_process_group("gloo", init_method=f"file://{results}/rendezvous", rank=rank, world_size=2)
    # The limits make sub-batches of different number in the two processes.
    batch, _ = batch_of(tiny, scores=True, items=range(rank * 4, rank * 4 + 4), limit=4 - rank)
    model = load(tiny / "bert", cross_device=True, distillation="kl_div").train()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped(**batch)["loss"].backward()
    plain = gradients(model)
    model.zero_grad()
    grad_cache_step(model, wrapped, lambda loss: loss.backward(), **batch)
    if rank == 0:
        torch.save(plain, results / "plain.pt")
        torch.save(gradients(model), results / "cached.pt")
    dist.barrier()
    dist.destroy_process_group()


processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank, *map(Path, sys.argv[1:])))
             for rank in range(2)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(max(abs(process.exitcode) for process in processes))
