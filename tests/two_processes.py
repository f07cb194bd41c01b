"""Started by test_contrastive.py through torchrun: gradients of two processes with --negatives_cross_device."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from batches_for_tests import batch_of, gradients, load
from torch.nn.parallel import DistributedDataParallel

from embedding_finetune.contrastive import grad_cache_step

tiny, results = map(Path, sys.argv[1:])
dist.init_process_group("gloo")
rank = int(os.environ["RANK"])
batch, _ = batch_of(tiny, scores=True, items=range(rank * 4, rank * 4 + 4), limit=4 - rank)  # chunks differ in number
model = load(tiny / "bert", negatives_cross_device=True).train()
wrapped = DistributedDataParallel(model, find_unused_parameters=True)
wrapped(**batch).loss.backward()
plain = gradients(model)
model.zero_grad()
grad_cache_step(model, wrapped, lambda loss: loss.backward(), **batch)
if rank == 0:
    torch.save(plain, results / "plain.pt")
    torch.save(gradients(model), results / "cached.pt")
dist.barrier()
dist.destroy_process_group()
