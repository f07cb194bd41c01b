"""Encode the corpus and the queries by several processes, or on several machines, before the vectors are needed.

    python -m embedding_finetune encode LABEL .. [--processes 4]    on this machine, one a GPU where there are several
    python -m embedding_finetune encode LABEL .. --shard 2/8        the second of eight shares, wherever it runs

With RAY_ADDRESS (docs/scale.md), the processes are workers of a Ray cluster.

What a process encodes goes to OUTPUT_DIR/cache in files that are written whole; notebooks, mining and the index look
there first. So nothing is encoded twice, a share that was killed costs its last file, and shares need not be as many as
last time. Machines share the folder, or its files are copied together: the results are the same.
"""

import functools
import os
import re
import subprocess
import sys

import torch

from embedding_finetune.contrib.ray_encode import for_each_shard
from embedding_finetune.data.collection import read_data
from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.settings import Settings


def encode_shard(settings, labels, part, parts):
    """Encode every `parts`-th passage and query with the models of `labels`, from number `part` (0, 1 ..) on."""
    collection = read_data(settings)
    for label in labels:
        encoder = make_encoder(settings, load_encoder_config(settings, label))
        for kind, texts in (("passages", collection.corpus), ("queries", collection.queries)):
            share = list(dict.fromkeys(texts.values()))[part::parts]
            print(f"{label}: {len(share):,} {kind}, share {part + 1} of {parts}", flush=True)
            getattr(encoder, f"encode_{kind}")(share)


def encode_in_processes(labels, processes):
    """Encode all by so many processes of this machine, each with a GPU, or its part of the cores, to itself.

    Raises UserError when one has failed, once the others are done.
    """
    gpus, cores = torch.cuda.device_count(), max(1, (os.cpu_count() or 1) // processes)
    if gpus and processes > gpus:
        raise UserError(f"--processes {processes} is more than the {gpus} GPUs of this machine: give {gpus}")
    running = []
    try:
        for number in range(processes):
            own = {"CUDA_VISIBLE_DEVICES": str(number)} if gpus else {"OMP_NUM_THREADS": str(cores)}
            command = [sys.executable, "-m", "embedding_finetune", "encode", *labels, "--shard",
                       f"{number + 1}/{processes}"]
            running.append(subprocess.Popen(command, env=os.environ | own))
        failed = [process.returncode for process in running if process.wait()]
    finally:
        for process in running:
            process.kill()
    if failed:
        raise UserError(f"{len(failed)} of {processes} processes failed (exit status {failed[0]}); what they said is "
                        "above. The same command goes on from what is finished")


def parse_shard(text):
    """`2/8` -> (1, 8). Raises UserError when it is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise UserError(f"--shard {text} is no share: give 1/8 to 8/8 for eight of them")
    return number - 1, parts


def main():
    parser = CommandLine("encode", "Encode in shares.")
    parser.add_argument("labels", nargs="+", metavar="LABEL", help="raw, reference, a recipe's label ..")
    parser.add_argument("--processes", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--shard", metavar="I/N", help="encode this share alone, in this process")
    options, settings = parser.parse_args(), Settings.load()
    for label in options.labels:
        load_encoder_config(settings, label)  # a model that is not there is named once, before anything starts
    if options.processes < 1:
        raise UserError(f"--processes {options.processes}: give 1 or more")
    if options.shard:
        encode_shard(settings, options.labels, *parse_shard(options.shard))
    elif settings.ray_address:
        for_each_shard(settings, functools.partial(encode_shard, settings, options.labels, parts=options.processes),
                       options.processes)
    elif options.processes == 1:
        encode_shard(settings, options.labels, 0, 1)
    else:
        encode_in_processes(options.labels, options.processes)
