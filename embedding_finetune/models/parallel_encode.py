"""Encode the corpus and the queries in advance with several processes or machines.

    python -m embedding_finetune encode LABEL .. [--processes 4]    on this machine, by default one process per GPU
    python -m embedding_finetune encode LABEL .. --shard 2/8        the second of eight shards, on any machine

With RAY_ADDRESS (docs/scale.md), the processes are workers of a Ray cluster.

Vectors are written to OUTPUT_DIR/cache in complete files, which notebooks, mining and the index read first. Nothing is
encoded twice, a killed shard loses at most its last file, and the number of shards may change between runs. Machines
may share the folder, or their files can be copied into one folder.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import torch

from embedding_finetune import contrib
from embedding_finetune.data.collection import read_data
from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.settings import Settings


def encode_shard(settings: Settings, labels: Sequence[str], part: int, parts: int) -> None:
    """Encode every `parts`-th passage and query, starting at number `part` (from 0), with the models of `labels`."""
    collection = read_data(settings)
    for label in labels:
        encoder = make_encoder(settings, load_encoder_config(settings, label))
        for kind, texts, encode in (("passages", collection.corpus, encoder.encode_passages),
                                    ("queries", collection.queries, encoder.encode_queries)):
            shard = list(dict.fromkeys(texts.values()))[part::parts]
            print(f"{label}: {len(shard):,} {kind}, shard {part + 1} of {parts}", flush=True)
            encode(shard)


def encode_in_processes(labels: Sequence[str], processes: int) -> None:
    """Encode everything with `processes` processes, each with its own GPU or an equal number of cores.

    Raises UserError after all have ended if any has failed.
    """
    gpus, cores = torch.cuda.device_count(), max(1, (os.cpu_count() or 1) // processes)
    if gpus and processes > gpus:
        raise UserError(f"--processes {processes} is more than the {gpus} GPUs of this machine: give {gpus}")
    running = []
    try:
        for number in range(processes):
            variables = {"CUDA_VISIBLE_DEVICES": str(number)} if gpus else {"OMP_NUM_THREADS": str(cores)}
            command = [sys.executable, "-m", "embedding_finetune", "encode", *labels, "--shard",
                       f"{number + 1}/{processes}"]
            running.append(subprocess.Popen(command, env=os.environ | variables))
        failed = [process.returncode for process in running if process.wait()]
    finally:
        for process in running:
            process.kill()
    if failed:
        raise UserError(f"{len(failed)} of {processes} processes failed (exit status {failed[0]}); their errors are "
                        "above. Run the same command again to continue")


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard: `2/8` -> (1, 8). Raises UserError when it is invalid."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard {text} is no shard: give 1/8 to 8/8 for eight shards")
    return int(found[1]) - 1, int(found[2])


def main() -> None:
    """Run the `encode` command."""
    parser = CommandLine("encode", "Encode corpus and queries in advance, in shards.")
    parser.add_argument("labels", nargs="+", metavar="LABEL", help="raw, reference, a recipe's label ..")
    parser.add_argument("--processes", type=int, metavar="N", default=max(1, torch.cuda.device_count()),
                        help="processes that share the work (default: one per GPU)")
    parser.add_argument("--shard", metavar="I/N", help="encode only this shard, in this process")
    options, settings = parser.parse_args(), Settings.load()
    for label in options.labels:
        load_encoder_config(settings, label)  # report a missing model once, before any process starts
    if options.processes < 1:
        raise UserError(f"--processes {options.processes}: give 1 or more")
    if options.shard:
        encode_shard(settings, options.labels, *parse_shard(options.shard))
    elif settings.ray_address:
        work = functools.partial(encode_shard, settings, options.labels, parts=options.processes)
        contrib.load("ray_encode").for_each_shard(settings, work, options.processes)
    elif options.processes == 1:
        encode_shard(settings, options.labels, 0, 1)
    else:
        encode_in_processes(options.labels, options.processes)
