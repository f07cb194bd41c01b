"""Train the model of a recipe; this is the command that the finetune_*.sh scripts run.

    python -m embedding_finetune train LABEL                         any recipe of RECIPE_FILE
    python -m embedding_finetune train LABEL --dry-run               only say what it would do, and by which commands
    python -m pdb -m embedding_finetune train LABEL --one-process    without torchrun, for a debugger
                                                                     (docs/internals.md)

The finished model is in OUTPUT_DIR/LABEL. Until it is complete, OUTPUT_DIR/LABEL.partial holds its checkpoints, and the
same command continues from the last one. OVERWRITE=1 moves a finished model aside. GPUS=2 trains on two GPUs. NNODES=2
trains on two machines, each running this command (docs/scale.md).
"""

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

if not sys.stderr.isatty():  # in a log file, update bars twice a minute; tqdm reads this at import
    os.environ.setdefault("TQDM_MININTERVAL", "30")

import torch

from embedding_finetune.artifacts.manifest import write_checksummed, write_manifest
from embedding_finetune.artifacts.staging import lock, remove_checkpoint
from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.data.row_store import read_rows, write_for_flagembedding
from embedding_finetune.files import CommandLine, UserError, may_overwrite
from embedding_finetune.hub import check_hub, check_lengths, pinned, positions_of, snapshot
from embedding_finetune.models.encoder_config import base_encoder_config, embedding_dim
from embedding_finetune.recipes import Recipe, find_recipe
from embedding_finetune.setting_checks import AUTO
from embedding_finetune.settings import Settings, display_value
from embedding_finetune.training.arguments import (
    MODULES,
    SETTINGS,
    TrainingSettings,
    read_settings,
    stock_flags,
    write_settings,
)
from embedding_finetune.training.export import complete
from embedding_finetune.training.launcher import check_processes, launch
from embedding_finetune.training.lengths import resolve_lengths
from embedding_finetune.training.log import duration
from embedding_finetune.training.merging import merge
from embedding_finetune.training.mining import mine
from embedding_finetune.training.plan import WORKER, estimate_time, log_lines, missing_in_flagembedding
from embedding_finetune.training.preflight import preflight
from embedding_finetune.training.provenance import (
    RECORD,
    check_trained,
    has_new_head,
    initial_model,
    is_current,
    read_record,
    same_training,
    training_record,
)
from embedding_finetune.training.training_data import export_path, training_path

WITH_PROMPT = "train_data.json"  # the training file in the format of FlagEmbedding's trainer


def check(settings: Settings, recipe: Recipe) -> tuple[Settings, Collection]:
    """Validate the settings for a recipe; returns (settings with the recipe's overrides, collection).

    Raises UserError if a finished model (without OVERWRITE=1) or something else is in the way, or if the base model is
    not available or has too few positions for the lengths.
    """
    tuned, finished = settings.with_overrides(recipe.settings), settings.paths.model(recipe.label)
    if finished.exists() and not (finished / RECORD).exists():
        raise UserError(f"{display_value(finished)} holds something else than a model of this recipe: move it away or "
                        "rename the recipe")
    if finished.exists() and not may_overwrite():
        raise UserError(f"{display_value(finished)} holds a finished model; OVERWRITE=1 moves it aside and trains "
                        "again")
    config, collection, reranker = base_encoder_config(tuned), read_data(settings), recipe.kind == "cross_encoder"
    tuned = fit_batch(tuned, recipe, len(collection.split("train").queries))
    name, trusted = initial_model(tuned, recipe)
    check_hub(name)
    query, passage = (0 if length == AUTO else int(length) for length in (tuned.query_max_len, tuned.passage_max_len))
    check_lengths(name, query, passage + (query if reranker else 0), trusted=trusted)
    check_processes(tuned)
    missing = [*missing_in_flagembedding(tuned, recipe), *(name for name, wanted in {
        "reranker": reranker, "several nodes (NNODES)": tuned.nnodes > 1,
        "restart (MAX_RESTARTS)": tuned.max_restarts}.items() if wanted)]
    if tuned.trainer == "flagembedding" and missing:
        raise UserError(f"FlagEmbedding's trainer has no {missing[0]}: use TRAINER=embedding_finetune")
    if reranker and (tuned.lora_rank or tuned.grad_cache_chunk or tuned.architecture != "single_vector"
                     or recipe.teacher):
        raise UserError(f"{recipe.label}: LORA_RANK, GRAD_CACHE_CHUNK, ARCHITECTURE and teacher are not supported for "
                        "rerankers; remove them")
    if tuned.query_expansion and (tuned.architecture != "multi_vector" or tuned.query_expansion > config.query_max_len):
        raise UserError(f"QUERY_EXPANSION={tuned.query_expansion} needs ARCHITECTURE=multi_vector (it would change "
                        f"single-vector embeddings), and may be at most QUERY_MAX_LEN ({config.query_max_len})")
    for dim in map(int, tuned.matryoshka_dims.split()):
        if reranker or tuned.architecture != "single_vector" or dim >= embedding_dim(config):
            raise UserError(f"MATRYOSHKA_DIMS={tuned.matryoshka_dims} needs ARCHITECTURE=single_vector and no "
                            f"reranker, each below the {embedding_dim(config)} dimensions of the base model")
    return tuned, collection


def fit_batch(tuned: Settings, recipe: Recipe, queries: int) -> Settings:
    """The settings with batches no larger than the training queries that a recipe uses; prints a change."""
    largest = max(1, round(recipe.train_fraction * queries) // (tuned.gpus * tuned.nnodes))
    if tuned.batch_size <= largest:
        return tuned
    print(f"batches of {largest} queries, not {tuned.batch_size}: there are no more training queries")
    return tuned.with_overrides({"BATCH_SIZE": largest})


def prepare(settings: Settings, recipe: Recipe) -> tuple[Settings, Path]:
    """Make the training file and the folder of a training; returns (settings with the recipe's overrides, folder).

    The folder holds the model until it is complete, and the TrainingSettings that the processes read. Raises UserError
    as `check` does, if an interrupted training has other settings, or if the training file cannot be made.
    """
    tuned, collection = check(settings, recipe)
    finished = settings.paths.model(recipe.label)
    unfinished = settings.paths.unfinished(recipe.label, tuned.trainer)
    initial = base_encoder_config(tuned)
    if recipe.kind == "cross_encoder":
        head = ", with a new head" if has_new_head(tuned, recipe) else ""
        initial = f"{display_value(initial_model(tuned, recipe)[0])}{head}"
    print(f"initial model: {initial}", flush=True)
    training = None if recipe.merge else training_settings(settings, recipe, tuned, collection)
    if training is None:
        check_trained(settings, recipe.merge)
    else:
        if may_overwrite() or not any(unfinished.glob("checkpoint-*")):
            preflight(training, settings.paths.preflight(recipe.label))
        mine(settings, recipe.label, collection)
    record = training_record(settings, recipe)
    record |= {"lengths": [training.query_max_len, training.passage_max_len]} if training else {}
    if tuned.trainer == "flagembedding" or recipe.merge:
        shutil.rmtree(unfinished, ignore_errors=True)  # neither of these two can resume
    elif (interrupted := read_record(unfinished)) and not same_training(interrupted, record):
        _remove_interrupted(unfinished)
    if finished.exists():
        aside = finished.with_name(f"{recipe.label}.{time.strftime('%Y%m%d-%H%M%S')}")
        finished.rename(aside)
        print(f"moved the old model to {display_value(aside)}")
    # With several nodes, the first one writes the settings for all, and a training keeps them to its end.
    if training and not (tuned.nnodes > 1 and (unfinished / SETTINGS).exists()):
        with lock(unfinished, wait=False):
            write_settings(unfinished, training)
    write_checksummed(unfinished / RECORD, record)
    return tuned, unfinished


def _remove_interrupted(unfinished: Path) -> None:
    """Remove a training that cannot be continued. Raises UserError without OVERWRITE=1, or if it is running."""
    found = f"{display_value(unfinished)} holds an interrupted training with other settings or another training file"
    if not may_overwrite():
        raise UserError(f"{found}: restore them to continue it, or set OVERWRITE=1 to replace it")
    with lock(unfinished, wait=False):
        shutil.rmtree(unfinished)
    print(f"{found}: removed (OVERWRITE=1)", flush=True)


def training_settings(settings: Settings, recipe: Recipe, tuned: Settings,
                      collection: Collection) -> TrainingSettings:
    """The TrainingSettings of a recipe on this machine; `tuned` are the settings with the recipe's overrides.

    Automatic lengths are resolved by the training split of `collection` (see lengths.resolve_lengths).
    """
    config, reranker = base_encoder_config(tuned), recipe.kind == "cross_encoder"
    name, trusted = initial_model(tuned, recipe)
    more: dict[str, Any] = {"query_prompt": "", "passage_prompt": "", "dense": ""} if reranker else {}
    more |= {"label": "", "title": name, "name": name, "trusted": trusted, "training_data_note": "unknown",
             "overrides": "", "note": "", "unpublished": ""}
    encoder, dims = dataclasses.replace(config, **more), map(int, tuned.matryoshka_dims.split())
    lengths = resolve_lengths(tuned, encoder, collection, pairs=reranker)
    if reranker:  # it reads query and passage together
        room = positions_of(name, trusted) - lengths["query_max_len"]
        encoder = dataclasses.replace(encoder, query_max_len=lengths["query_max_len"],
                                      passage_max_len=min(encoder.passage_max_len, room))
    same: dict[str, Any] = {field.name: getattr(tuned, field.name) for field in dataclasses.fields(TrainingSettings)
            if hasattr(tuned, field.name)}
    return TrainingSettings(**same | {
        "label": recipe.label, "kind": recipe.kind, "encoder": encoder,
        "training_file": str(training_path(settings, recipe)), "data": str(settings.paths.data),
        "precision": precision(tuned.precision), "cpu": not torch.cuda.is_available(),
        "teacher": bool(recipe.teacher), "new_head": has_new_head(tuned, recipe),
        "matryoshka_dims": (embedding_dim(config), *dims) if tuned.matryoshka_dims else (), **lengths})


def precision(wanted: str = "auto") -> str:
    """fp32, bf16 or fp16 for PRECISION. `auto` is bf16 on a GPU that supports it, fp16 on other GPUs, fp32 on CPUs.

    On CPUs it is always fp32, so that results do not depend on the processor.
    """
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def dry_run(settings: Settings, label: str) -> None:
    """Print what the training of a label would do, and the equivalent commands. Writes nothing; raises as `check`."""
    recipe = find_recipe(settings, label)
    tuned, collection = check(settings, recipe)
    if recipe.merge:
        print(f"{label} is merged from {recipe.merge} and its base model; nothing is trained")
        return
    path = training_path(settings, recipe)
    rows = len(read_rows(path)) if path.is_file() else round(
        recipe.train_fraction * len(collection.split("train").queries))
    training = training_settings(settings, recipe, tuned, collection)
    print(*log_lines(tuned, training, settings.paths.unfinished(label), rows, export_path(settings, recipe),
                     missing_in_flagembedding(tuned, recipe)), sep="\n")


def finetune(settings: Settings, label: str, one_process: bool = False) -> Path:
    """Train or merge the model of a recipe; returns the finished folder. Raises like `prepare`, `launch`, `merge`."""
    recipe = find_recipe(settings, label)
    print(f"fine-tuning {label} ({recipe.description}): profile {settings.profile}, data "
          f"{display_value(settings.paths.data)}, output {display_value(settings.paths.output)}", flush=True)
    finished, together = settings.paths.model(label), settings.nnodes > 1
    # A training of one node locks its own folder.
    turn = partial(lock, settings.paths.output) if together or recipe.merge else contextlib.nullcontext
    with turn():  # the first node prepares or merges; the others find it done
        if recipe.merge and together and finished.exists() and is_current(settings, recipe):
            return finished
        tuned, unfinished = prepare(settings, recipe)
        if recipe.merge:
            weight = merge(settings, recipe, unfinished)
            print(f"weight of {recipe.merge}: {weight}"
                  f"{' (the model itself: averaging does not help)' if weight == 1 else ''}")
            return _finished(unfinished, finished)
    if not (unfinished / "model.safetensors").exists():  # it exists if a run was stopped after training
        _train(tuned, recipe, unfinished, one_process)
    with turn():
        if together and not unfinished.exists() and finished.exists():
            return finished  # another node was faster
        if not (unfinished / "model.safetensors").exists():
            raise UserError(f"{display_value(unfinished)} holds no model: training did not finish; see its messages "
                            "above")
        for checkpoint in unfinished.glob("checkpoint-*"):  # left if a training was stopped while removing them
            remove_checkpoint(checkpoint)
        return _finished(unfinished, finished)


def _train(tuned, recipe, unfinished, one_process):
    """Say what the training in a folder will do, and run it."""
    training = read_settings(unfinished)
    rows = read_rows(training.training_file, teacher=training.teacher)
    print(*log_lines(tuned, training, unfinished, len(rows), export_path(tuned, recipe),
                     missing_in_flagembedding(tuned, recipe)), sep="\n", flush=True)
    if not torch.cuda.is_available():
        seconds = estimate_time(training, rows)
        print(f"no GPU found: training takes roughly {duration(seconds)} on this CPU"
              f"{'' if tuned.profile == 'demo' else '; PROFILE=demo takes minutes'}", flush=True)
    if tuned.trainer != "flagembedding":
        launch(tuned, recipe.label, WORKER, [str(unfinished)], one_process)
        return
    config, data = base_encoder_config(tuned), unfinished / WITH_PROMPT
    write_for_flagembedding(data, rows, config.query_prompt)
    base = snapshot(config.name) if pinned(config.name)[1] else None  # its trainer has no revision flag
    launch(tuned, recipe.label, MODULES[training.kind], stock_flags(training, unfinished, data, base), one_process)
    complete(unfinished, config)
    data.unlink()


def _finished(unfinished, finished):
    """Write the manifest of a completed folder and rename the folder to its final name."""
    for name in (".lock", SETTINGS):
        (unfinished / name).unlink(missing_ok=True)
    write_manifest(unfinished)
    return unfinished.rename(finished)


def main() -> None:
    """The command `train`."""
    parser = CommandLine("train", __doc__)
    parser.add_argument("labels", nargs="*", metavar="LABEL")
    parser.add_argument("--default", metavar="LABEL", help="the label if none is given, for the scripts")
    parser.add_argument("--dry-run", action="store_true", help="only say what the training would do")
    parser.add_argument("--one-process", action="store_true", help="train without torchrun, for a debugger")
    options = parser.parse_args()
    labels = options.labels or [options.default]
    if len(labels) != 1 or not labels[0]:
        raise UserError("give exactly one recipe label, e.g. `python -m embedding_finetune train neg10`")
    if options.dry_run:
        dry_run(Settings.load(), labels[0])
    else:
        print(f"finished: {display_value(finetune(Settings.load(), labels[0], options.one_process))}")
