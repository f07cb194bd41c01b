"""Train the model of a recipe; this is the command that the finetune_*.sh scripts run.

    python -m embedding_finetune train LABEL                         any recipe of RECIPE_FILE
    python -m pdb -m embedding_finetune train LABEL --one-process    without torchrun, for a debugger
                                                                     (docs/debugging.md)

The finished model is in OUTPUT_DIR/LABEL. Until it is complete, OUTPUT_DIR/LABEL.partial holds its checkpoints, and the
same command continues from the last one. OVERWRITE=1 moves a finished model aside. GPUS=2 trains on two GPUs. NNODES=2
trains on two machines, each running this command (docs/scale.md).
"""

import contextlib
import os
import shutil
import sys
import time
from functools import partial

if not sys.stderr.isatty():  # in a log file, update bars twice a minute; tqdm reads this at import
    os.environ.setdefault("TQDM_MININTERVAL", "30")

import torch

from embedding_finetune.artifacts.manifest import write_checksummed, write_manifest
from embedding_finetune.artifacts.staging import lock, remove_checkpoint
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.row_store import read_rows, write_for_flagembedding
from embedding_finetune.files import CommandLine, UserError, may_overwrite
from embedding_finetune.hub import check_hub, check_lengths, load, pinned, snapshot
from embedding_finetune.models.encoder_config import base_encoder_config, embedding_dim
from embedding_finetune.models.fast_layers import cpu_has
from embedding_finetune.recipes import find_recipe
from embedding_finetune.settings import TABLE, Settings, display_value
from embedding_finetune.training.export import complete
from embedding_finetune.training.launcher import check_processes, launch
from embedding_finetune.training.log import duration
from embedding_finetune.training.merging import merge
from embedding_finetune.training.provenance import (
    RECORD,
    check_trained,
    initial_model,
    is_current,
    read_record,
    same_training,
    training_record,
)
from embedding_finetune.training.training_data import make_training_file, training_path

MODULES = {"embedding_finetune": "embedding_finetune.training.worker",
           "flagembedding": "FlagEmbedding.finetune.embedder.encoder_only.base"}
# Flags that FlagEmbedding's trainer does not have.
NOT_IN_FLAGEMBEDDING = ("grad_cache_chunk", "dev_steps", "dev_corpus_size", "lora_rank", "lora_alpha", "architecture",
                        "token_dim", "query_expansion", "patience")
KD_LOSSES = {"kl": "kl_div", "margin": "margin_mse"}  # DISTILLATION_LOSS -> --kd_loss_type; the second is ours
WITH_PROMPT = "train_data.json"  # the training file in the format of FlagEmbedding's trainer


def prepare(settings, recipe):
    """Validate the settings and make the training file; returns (settings with the recipe's overrides, folder).

    The folder holds the model until it is complete. Raises UserError if a finished model (without OVERWRITE=1) or
    something else is in the way, if an interrupted training has other settings, if the training file cannot be made, or
    if the base model is not available or has too few positions for the lengths.
    """
    tuned, finished = settings.with_overrides(recipe.settings), settings.paths.model(recipe.label)
    unfinished = settings.paths.unfinished(recipe.label, tuned.trainer)
    if finished.exists() and not (finished / RECORD).exists():
        raise UserError(f"{display_value(finished)} holds something else than a model of this recipe: move it away or "
                        "rename the recipe")
    if finished.exists() and not may_overwrite():
        raise UserError(f"{display_value(finished)} holds a finished model; OVERWRITE=1 moves it aside and trains "
                        "again")
    config, collection, reranker = base_encoder_config(tuned), read_data(settings), recipe.kind == "cross_encoder"
    (name, trusted), together = initial_model(tuned, recipe), tuned.query_max_len if reranker else 0
    check_hub(name)
    check_lengths(name, tuned.query_max_len, tuned.passage_max_len + together, trusted=trusted)
    check_processes(tuned)
    for lacks, wanted in {"LoRA": tuned.lora_rank, "Dense layers": config.dense,
                          "late interaction": tuned.architecture != "single_vector", "reranker": reranker,
                          "margin distillation": recipe.teacher and tuned.distillation_loss == "margin",
                          "early stopping (PATIENCE)": tuned.patience, "several nodes (NNODES)": tuned.nnodes > 1,
                          "restart (MAX_RESTARTS)": tuned.max_restarts}.items():
        if wanted and tuned.trainer == "flagembedding":
            raise UserError(f"FlagEmbedding's trainer has no {lacks}: use TRAINER=embedding_finetune")
    if reranker and (tuned.lora_rank or tuned.grad_cache_chunk or tuned.architecture != "single_vector"
                     or recipe.teacher):
        raise UserError(f"{recipe.label}: LORA_RANK, GRAD_CACHE_CHUNK, ARCHITECTURE and teacher are not supported for "
                        "rerankers; remove them")
    if tuned.query_expansion and (tuned.architecture != "multi_vector" or tuned.query_expansion > tuned.query_max_len):
        raise UserError(f"QUERY_EXPANSION={tuned.query_expansion} needs ARCHITECTURE=multi_vector (it would change "
                        f"single-vector embeddings), and may be at most QUERY_MAX_LEN ({tuned.query_max_len})")
    for dim in map(int, tuned.matryoshka_dims.split()):
        if reranker or tuned.architecture != "single_vector" or dim >= embedding_dim(config):
            raise UserError(f"MATRYOSHKA_DIMS={tuned.matryoshka_dims} needs ARCHITECTURE=single_vector and no "
                            f"reranker, each below the {embedding_dim(config)} dimensions of the base model")
    initial = f"{display_value(name)}{'' if settings.reranker_model else ', with a new head'}" if reranker else config
    print(f"initial model: {initial}", flush=True)
    if recipe.merge:
        check_trained(settings, recipe.merge)
    else:
        _prepare_rows(settings, recipe, collection)
    record = training_record(settings, recipe)
    if tuned.trainer == "flagembedding" or recipe.merge:
        shutil.rmtree(unfinished, ignore_errors=True)  # neither of these two can resume
    elif (interrupted := read_record(unfinished)) and not same_training(interrupted, record):
        raise UserError(f"{display_value(unfinished)} holds an interrupted training with other settings or another "
                        "training file: restore them to continue it, or remove the folder")
    if finished.exists():
        aside = finished.with_name(f"{recipe.label}.{time.strftime('%Y%m%d-%H%M%S')}")
        finished.rename(aside)
        print(f"moved the old model to {display_value(aside)}")
    write_checksummed(unfinished / RECORD, record)
    return tuned, unfinished


def _prepare_rows(settings, recipe, collection):
    miner = None
    if recipe.negatives == "mined" or recipe.teacher:
        from embedding_finetune.training.mining import Miner  # imported only when needed
        miner = Miner(settings, recipe)
    sources = make_training_file(settings, recipe, collection, miner)
    shares = ", ".join(f"{share:.1%} {name}" for name, share in sources.items())
    print(f"{display_value(training_path(settings, recipe))}: negatives {shares}", flush=True)


def flags_of(settings, recipe, tuned, output):
    """Command-line flags of a training, from the settings, the model, the recipe and the machine."""
    config, ours = base_encoder_config(tuned), tuned.trainer == "embedding_finetune"
    name, trusted = initial_model(tuned, recipe)
    base = name if ours or not pinned(name)[1] else snapshot(name)  # FlagEmbedding's trainer has no revision flag
    flags = {
        "model_name_or_path": base, "sentence_pooling_method": config.pooling, "normalize_embeddings": config.normalize,
        "trust_remote_code": trusted or None,
        "train_data": training_path(settings, recipe) if ours else output / WITH_PROMPT,
        "cache_path": settings.paths.output / ".cache",
        "query_instruction_for_retrieval": config.query_prompt or None, "query_instruction_format": "{}{}",
        "passage_instruction_for_retrieval": config.passage_prompt or None, "passage_instruction_format": "{}{}",
        **{row.metadata["flag"]: getattr(tuned, row.name) for row in TABLE.values()
           if row.metadata["flag"] and (ours or row.metadata["flag"] not in NOT_IN_FLAGEMBEDDING)},
        "dataloader_drop_last": True, "seed": tuned.seed, **precision(tuned.precision), "output_dir": output,
        **({"save_strategy": "steps", "save_steps": 0.2, "dev_data": settings.paths.data} if ours  # five checkpoints
           else {"save_strategy": "no", "disable_tqdm": True}), "report_to": "none",
        **({"use_mrl": True, "mrl_dims": f"{embedding_dim(config)} {tuned.matryoshka_dims}"}
           if tuned.matryoshka_dims else {}),
        **({"knowledge_distillation": True, "kd_loss_type": KD_LOSSES[tuned.distillation_loss]}
           if recipe.teacher else {}),
        **({"negatives_cross_device": True} if tuned.gpus * tuned.nnodes > 1 else {}),
    }
    if recipe.kind == "cross_encoder":
        prompts = dict.fromkeys(("query_instruction_for_retrieval", "passage_instruction_for_retrieval"))
        flags |= prompts | {"negatives_cross_device": None, "reranker": True, "new_head": not settings.reranker_model}
    return [word for name, value in flags.items() if value is not None
            for word in (f"--{name}", *(str(value).split() if name == "mrl_dims" else [str(value)]))]


def precision(wanted="auto"):
    """Flags for PRECISION. `auto` is bf16 on a GPU that supports it, fp16 on other GPUs, and fp32 on CPUs.

    On CPUs it is always fp32, so that results do not depend on the processor.
    """
    gpu = torch.cuda.is_available()
    if wanted == "auto" and gpu:
        wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif wanted == "auto":
        wanted = "fp32"
    return ({} if gpu else {"use_cpu": True}) | ({} if wanted == "fp32" else {wanted: True})


def precision_line(wanted):
    """Log line with the precision used on this machine, and a notice if the CPU only emulates it."""
    flags = precision(wanted)
    used = next((name for name in ("bf16", "fp16") if name in flags), "fp32")
    emulated = "use_cpu" in flags and used != "fp32" and not cpu_has(used)
    return f"precision: {used} (PRECISION={wanted})" + (
        "; this CPU only emulates it: PRECISION=fp32 is faster" if emulated else "")


def estimate_time(tuned, recipe):
    """Rough training time on this CPU in seconds: 6 operations per weight and token, at matrix multiplication speed."""
    rows, (name, trusted) = read_rows([training_path(tuned, recipe)]), initial_model(tuned, recipe)
    config, tokenizer = (load(kind, name, trusted) for kind in ("AutoConfig", "AutoTokenizer"))
    sample = [rows[number] for number in range(min(200, len(rows)))]
    texts, max_length = [[row["pos"][0] for row in sample]], tuned.passage_max_len
    if recipe.kind == "cross_encoder":  # it reads each passage together with the query
        texts, max_length = [[row["query"] for row in sample], *texts], tuned.query_max_len + tuned.passage_max_len
    tokens = tokenizer(*texts, truncation=True, max_length=max_length)["input_ids"]
    tokens = tuned.epochs * len(rows) * tuned.train_group_size * sum(map(len, tokens)) / len(sample)
    left, right, start = torch.rand(512, config.hidden_size), torch.rand(config.hidden_size, 2048), time.monotonic()
    for _ in range(10):
        left @ right
    operations_per_second = 10 * 2 * left.numel() * 2048 / (time.monotonic() - start)
    return tokens * 6 * 12 * config.num_hidden_layers * config.hidden_size**2 / operations_per_second


def finetune(settings, label, one_process=False):
    """Train or merge the model of a recipe; returns the finished folder. Raises like `prepare`, `launch`, `merge`."""
    recipe = find_recipe(settings, label)
    print(f"fine-tuning {label} ({recipe.description}): profile {settings.profile}, data "
          f"{display_value(settings.paths.data)}, output {display_value(settings.paths.output)}", flush=True)
    if recipe.merge:
        with lock(settings.paths.output):  # a second process waits and finds it done; a training locks its own folder
            return _merged(settings, recipe)
    turn = partial(lock, settings.paths.output) if settings.nnodes > 1 else contextlib.nullcontext
    with turn():
        tuned, unfinished = prepare(settings, recipe)  # runs on the first node; the others find it done
    if not (unfinished / "model.safetensors").exists():  # it exists if a run was stopped after training
        module, flags = MODULES[tuned.trainer], flags_of(settings, recipe, tuned, unfinished)
        print(precision_line(tuned.precision))
        print(f"{module}\n    " + " ".join(flags).replace(" --", "\n    --"), flush=True)
        if not torch.cuda.is_available():
            seconds = estimate_time(tuned, recipe)
            print(f"no GPU found: training takes roughly {duration(seconds)} on this CPU"
                  f"{'' if settings.profile == 'demo' else '; PROFILE=demo takes minutes'}", flush=True)
        if tuned.trainer == "flagembedding":
            rows = read_rows([training_path(settings, recipe)], teacher=bool(recipe.teacher))
            write_for_flagembedding(unfinished / WITH_PROMPT, rows, base_encoder_config(tuned).query_prompt)
        launch(tuned, label, module, flags, one_process)
        if tuned.trainer == "flagembedding":
            complete(unfinished, base_encoder_config(tuned))
            (unfinished / WITH_PROMPT).unlink()
    with turn():
        finished = settings.paths.model(label)
        if settings.nnodes > 1 and not unfinished.exists() and finished.exists():
            return finished  # another node was faster
        if not (unfinished / "model.safetensors").exists():
            raise UserError(f"{display_value(unfinished)} holds no model: training did not finish; see its messages "
                            "above")
        for checkpoint in unfinished.glob("checkpoint-*"):  # left if a training was stopped while removing them
            remove_checkpoint(checkpoint)
        return _finished(unfinished, finished)


def _merged(settings, recipe):
    finished = settings.paths.model(recipe.label)
    if settings.nnodes > 1 and finished.exists() and is_current(settings, recipe):
        return finished  # another node was faster
    _, unfinished = prepare(settings, recipe)
    weight = merge(settings, recipe, unfinished)
    print(f"weight of {recipe.merge}: {weight}{' (the model itself: averaging does not help)' if weight == 1 else ''}")
    return _finished(unfinished, finished)


def _finished(unfinished, finished):
    """Write the manifest of a completed folder and rename the folder to its final name."""
    (unfinished / ".lock").unlink(missing_ok=True)
    write_manifest(unfinished)
    return unfinished.rename(finished)


def main():
    parser = CommandLine("train", __doc__)
    parser.add_argument("labels", nargs="*", metavar="LABEL")
    parser.add_argument("--one-process", action="store_true", help="train without torchrun, for a debugger")
    options = parser.parse_args()
    if len(options.labels) != 1:
        raise UserError("give exactly one recipe label, e.g. `python -m embedding_finetune train neg10`")
    print(f"finished: {display_value(finetune(Settings.load(), options.labels[0], options.one_process))}")
