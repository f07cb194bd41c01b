"""The training process: `torchrun .. -m embedding_finetune.training.worker FOLDER`, started by training.launcher.

FOLDER holds the settings of the training, see training.arguments.

During training the output folder holds the last checkpoint, the best one by dev metric, and `training_log.jsonl`; after
training it holds the model. The same command continues an interrupted run from its last complete checkpoint and gives
the same parameters. That the settings are unchanged is checked by training.train, which writes the run's record.
"""

import logging
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers

from embedding_finetune.artifacts.staging import complete_checkpoints, lock, remove_checkpoint
from embedding_finetune.data.collection import Collection, read_collection
from embedding_finetune.data.row_store import read_rows
from embedding_finetune.files import UserError, one_line, read_json, run_command_line
from embedding_finetune.hub import check_lengths, load
from embedding_finetune.models.batching import BATCH_OVERHEAD_TOKENS
from embedding_finetune.models.fast_layers import use_fast_dropout, use_pointwise_linear
from embedding_finetune.models.modeling import DenseLayers, load_encoder
from embedding_finetune.models.multi_vector import load_projection, new_projection, special_token_ids
from embedding_finetune.settings import SELECTION_METRIC
from embedding_finetune.training.arguments import (
    KD_LOSSES,
    SETTINGS,
    TrainingSettings,
    read_settings,
    training_arguments,
)
from embedding_finetune.training.batches import Collator, EpochSampler, TrainingSet
from embedding_finetune.training.dev_evaluator import DevEvaluator
from embedding_finetune.training.distributed import LOST, RANK, WORLD_SIZE, check_same_inputs, check_shared, gather
from embedding_finetune.training.export import export
from embedding_finetune.training.log import read_log
from embedding_finetune.training.loss import ContrastiveModel
from embedding_finetune.training.reranker import (
    PairCollator,
    RerankerDevEvaluator,
    export_reranker,
    load_reranker_model,
    training_warnings,
)
from embedding_finetune.training.trainer import Trainer


def load_model(training: TrainingSettings, device: torch.device) -> tuple[Any, ContrastiveModel]:
    """Tokenizer and ContrastiveModel of the initial model.

    With LoRA (Hu et al. 2021, arXiv 2106.09685) only the adapters and the Dense layers are trained. Weights are
    float32, however they are stored: half precision is for the forward and backward pass, since Adam's small updates
    need float32.
    """
    config = training.encoder
    check_lengths(config.name, config.query_max_len, config.passage_max_len, config.trusted)
    tokenizer = load("AutoTokenizer", config.name, config.trusted)
    encoder, dense = load_encoder(config.name, config.dense, config.trusted)
    if training.lora_rank:
        lora: dict[str, Any] = {"r": training.lora_rank, "lora_alpha": training.lora_alpha}
        encoder = peft.get_peft_model(encoder, peft.LoraConfig(**lora, target_modules="all-linear"))
    if device.type == "cpu":
        use_fast_dropout(encoder)
        if training.precision == "fp32":
            use_pointwise_linear(encoder)
    projection = DenseLayers()
    if training.architecture != "single_vector":
        projection = load_projection(config.name) or new_projection(encoder.config.hidden_size, training.token_dim)
    dense.requires_grad_(training.architecture != "multi_vector")  # multi-vector models do not use it
    return tokenizer, ContrastiveModel(
        encoder, dense=dense, pooling=config.pooling, normalize=config.normalize, temperature=training.temperature,
        architecture=training.architecture, projection=projection, added=special_token_ids(tokenizer),
        longest=max(config.query_max_len, config.passage_max_len), mask_false_negatives=training.mask_false_negatives,
        cross_device=WORLD_SIZE > 1, distillation=KD_LOSSES[training.distillation_loss] if training.teacher else None,
        mrl_dims=training.matryoshka_dims)


def make_trainer(training: TrainingSettings, rows, args: transformers.TrainingArguments, dev: Collection | None,
                 begins: bool) -> Trainer:
    """The Trainer of a training over `rows`, with the initial model; `begins` is whether it has no checkpoint yet."""
    transformers.set_seed(training.seed)
    config, shortened, evaluator = training.encoder, training.encoder_in_training, None
    call_cost = BATCH_OVERHEAD_TOKENS[args.device.type]
    if training.kind == "cross_encoder":
        tokenizer, model = load_reranker_model(config, training.new_head, args.device)
        collator = PairCollator(tokenizer, shortened, call_cost)
        evaluator = dev and RerankerDevEvaluator(dev, training, collator, args.device)
    else:
        tokenizer, model = load_model(training, args.device)
        collator = Collator(tokenizer, shortened, call_cost, training.grad_cache_chunk or None,
                            expansion=training.query_expansion)
        evaluator = dev and DevEvaluator(dev, training, tokenizer, config, args.device, training.query_expansion)
    if training.lora_rank:
        sizes = [(weights.numel(), weights.requires_grad) for weights in model.parameters()]
        log_line(f"LoRA: {sum(size for size, trained in sizes if trained):,} of {sum(size for size, _ in sizes):,} "
                 "weights are trained")
    callbacks = []
    if evaluator:
        args.metric_for_best_model, args.greater_is_better, args.eval_on_start = SELECTION_METRIC, True, begins
        callbacks = [transformers.EarlyStoppingCallback(training.patience)] if training.patience else []
    return Trainer(
        model=model, args=args, training=training, dev=evaluator, processing_class=tokenizer, data_collator=collator,
        train_dataset=TrainingSet(rows, shortened, training.train_group_size, training.seed), callbacks=callbacks,
        sampler=EpochSampler(len(rows), training.batch_size, training.seed, drop_last=True))


def run(training: TrainingSettings, output: Path, args: transformers.TrainingArguments, dev: Collection | None) -> None:
    """Train from the last complete checkpoint, or from the start, and export the model; `dev` is the dev split."""
    check_shared(output)
    rows = read_rows(training.training_file, teacher=training.teacher)
    step = training.batch_size * WORLD_SIZE
    if len(rows) < step:
        raise UserError(f"{len(rows)} training queries are fewer than the {step} of a step: use more queries or a "
                        "smaller batch size")
    # Rank 0 decides, since other nodes may see new files on a shared disk later.
    checkpoint = gather(last_checkpoint(output) if RANK == 0 else None)[0]
    if checkpoint:
        checkpoint = str(output / checkpoint)
        log_line(f"continuing from {checkpoint}")
    trainer = make_trainer(training, rows, args, dev, begins=checkpoint is None)
    trainer.train(resume_from_checkpoint=checkpoint)
    if RANK == 0:
        finish(trainer, output)
    trainer.accelerator.wait_for_everyone()


def last_checkpoint(output: Path) -> str | None:
    """Name of the last complete checkpoint in a folder, or None; removes incomplete ones of a stopped process."""
    complete = complete_checkpoints(output)
    for folder in output.glob("checkpoint-*"):
        if folder not in complete:
            remove_checkpoint(folder)
    return complete[0].name if complete else None


def finish(trainer: Trainer, output: Path) -> None:
    """Export the best model (without a dev set, the last one) and remove the checkpoints."""
    state, curve = trainer.state, [row for row in read_log(output) if SELECTION_METRIC in row]
    best = state.best_global_step or state.global_step
    if best != state.global_step:
        trainer.load_weights(output / f"checkpoint-{best}")
    kind = "reranker" if trainer.training.kind == "cross_encoder" else "model"
    kept = (_finish_reranker if kind == "reranker" else _finish_model)(trainer, output, best, curve)
    for folder in output.glob("checkpoint-*"):
        remove_checkpoint(folder)
    log_line(f"finished after {state.global_step} steps, kept step {kept}: the {kind} is in {output}")


def _initial(curve):
    """The dev metrics before training, or None."""
    return curve[0] if curve and curve[0]["step"] == 0 else None


def _finish_model(trainer, output, best, curve):
    """Export the embedding model of step `best`, which is loaded; returns `best`. `curve` are the dev metrics."""
    training, encoder, value = trainer.training, trainer.model.encoder, trainer.state.best_metric
    card = {"training rows": len(trainer.train_dataset), "steps": f"{best} of {trainer.state.max_steps}",
            **(read_json(output / "training.json") or {}).get("settings", {}),
            "QUERY_MAX_LEN": training.encoder_in_training.query_max_len,
            "PASSAGE_MAX_LEN": training.encoder_in_training.passage_max_len}
    export(encoder.merge_and_unload() if training.lora_rank else encoder, trainer.processing_class, output,
           training.encoder, dense=trainer.model.dense, card=card, curve=curve, expansion=training.query_expansion,
           projection=None if training.architecture == "single_vector" else trainer.model.projection)
    if (before := _initial(curve)) and value is not None and value < before[SELECTION_METRIC]:
        log_line(f"warning: on the dev set the best checkpoint ({SELECTION_METRIC} {value:.4f}) is worse than the base "
                 f"model ({before[SELECTION_METRIC]:.4f})")
    return best


def _finish_reranker(trainer, output, best, curve):
    """Export the reranker of step `best`, or the initial one (step 0) if training did not improve dev metrics."""
    training, dev, model = trainer.training, trainer.dev, trainer.model
    config, before = training.encoder, None if training.new_head else _initial(curve)
    if dev is not None:
        scores = dev.scores(model) if dev.latest is None or best != trainer.state.global_step else dev.latest
        after = dev.measure(scores)
        for warning in training_warnings(before, after, dev.of_bm25):
            log_line(f"warning: {warning}")
        if before and after[SELECTION_METRIC] <= before[SELECTION_METRIC]:
            best, (_, model) = 0, load_reranker_model(config, False, trainer.args.device)
            log_line(f"the initial reranker is kept: {config.name}")
    export_reranker(model.encoder, trainer.processing_class, output, config.query_max_len + config.passage_max_len,
                    config.trusted)
    return best


def log_line(line: str) -> None:
    """Print a line in the process of rank 0."""
    if RANK == 0:
        print(line, flush=True)


def train(folder: str | Path) -> None:
    """Run the training whose settings are in a folder (see training.arguments). Raises UserError."""
    logging.basicConfig(level=logging.ERROR)  # hide the libraries' messages, except errors
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    output, training = Path(folder), read_settings(folder)
    dev = read_collection(Path(training.data)).split("dev") if training.data else None
    if dev is not None and not dev.queries:
        raise UserError(f"{training.data} has no dev queries: it needs qrels/dev.tsv")
    if not Path(training.training_file).is_file():
        raise UserError(f"{training.training_file} does not exist or is not a file: run a build notebook to make it")
    args = training_arguments(training, output, dev is not None)
    if args.n_gpu > 1:
        raise UserError(f"{args.n_gpu} GPUs in one process: start with torchrun --nproc_per_node {args.n_gpu}, or "
                        "select one with CUDA_VISIBLE_DEVICES")
    check_same_inputs({"settings": output / SETTINGS, "training file": training.training_file})
    if RANK:  # only rank 0 takes the lock; the others wait for it at the first collective call
        return run(training, output, args, dev)
    if (output / "model.safetensors").exists():
        raise UserError(f"{output} already holds a finished model: move it away")
    with lock(output, wait=False):
        run(training, output, args, dev)


def main() -> None:
    """The training process; a failure that other processes may have caused ends with the status LOST."""
    try:
        if len(sys.argv) != 2:
            raise UserError("give the folder of one training; `python -m embedding_finetune train LABEL` prepares it")
        train(sys.argv[1])
        if dist.is_initialized():
            dist.destroy_process_group()
    except KeyboardInterrupt:
        sys.exit(130)  # exit status of a shell after SIGINT; the launcher prints what to do
    except Exception as error:
        if RANK:  # rank 0 has most likely failed too: let it report first, then torchrun ends this one
            time.sleep(5)
        if isinstance(error, OSError):
            raise UserError(one_line(error)) from error
        if isinstance(error, UserError) or WORLD_SIZE == 1:
            raise
        traceback.print_exc()
        sys.exit(LOST)


if __name__ == "__main__":
    run_command_line(main)
