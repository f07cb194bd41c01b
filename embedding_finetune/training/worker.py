"""The training process, started by training.train through torchrun with the flags of training.arguments.

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

import peft
import torch.distributed as dist
import transformers

from embedding_finetune.artifacts.staging import complete_checkpoints, remove_checkpoint, try_lock
from embedding_finetune.data.collection import read_collection
from embedding_finetune.data.row_store import read_rows
from embedding_finetune.files import UserError, one_line, read_json, run_command_line
from embedding_finetune.hub import check_lengths, load
from embedding_finetune.models.batching import BATCH_OVERHEAD_TOKENS
from embedding_finetune.models.fast_layers import use_fast_dropout
from embedding_finetune.models.modeling import DenseLayers, load_encoder
from embedding_finetune.models.multi_vector import load_projection, new_projection, special_token_ids
from embedding_finetune.settings import SELECTION_METRIC
from embedding_finetune.training.arguments import encoder_config_from_arguments, parse
from embedding_finetune.training.batches import Collator, EpochSampler, TrainingSet
from embedding_finetune.training.dev_evaluator import DevEvaluator
from embedding_finetune.training.distributed import (
    LOST,
    RANK,
    WORLD_SIZE,
    broadcast_from_rank_0,
    check_same_arguments,
    check_shared,
)
from embedding_finetune.training.export import export
from embedding_finetune.training.log import read_log
from embedding_finetune.training.loss import ContrastiveModel
from embedding_finetune.training.reranker import (
    PairCollator,
    RerankerDevEvaluator,
    calibrate,
    export_reranker,
    load_reranker_model,
    training_warnings,
)
from embedding_finetune.training.trainer import Trainer


def load_model(model_args, data_args, args, config):
    """Tokenizer and ContrastiveModel of the base model.

    With LoRA (Hu et al. 2021, arXiv 2106.09685) only the adapters and the Dense layers are trained. Weights are
    float32, however they are stored: half precision (--bf16, --fp16) is for the forward and backward pass, since
    Adam's small updates need float32.
    """
    options = {"cache_dir": model_args.cache_dir, "token": model_args.token, "trusted": config.trusted}
    check_lengths(config.name, config.query_max_len, config.passage_max_len, **options)
    tokenizer = load("AutoTokenizer", config.name, use_fast=model_args.use_fast_tokenizer, **options)
    encoder, dense = load_encoder(config.name, config.dense, **options)
    for parameter_name, parameter in encoder.named_parameters():
        parameter.requires_grad = not (args.fix_position_embedding and "position_embeddings" in parameter_name)
    if args.gradient_checkpointing:
        encoder.enable_input_require_grads()
    if args.lora_rank:
        encoder = peft.get_peft_model(encoder, peft.LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha,
                                                               target_modules="all-linear"))
    if args.device.type == "cpu":
        use_fast_dropout(encoder)
    projection = DenseLayers()
    if args.architecture != "single_vector":
        projection = load_projection(config.name) or new_projection(encoder.config.hidden_size, args.token_dim)
    dense.requires_grad_(args.architecture != "multi_vector")  # multi-vector models do not use it
    return tokenizer, ContrastiveModel(
        encoder, dense=dense, pooling=args.sentence_pooling_method, normalize=args.normalize_embeddings,
        temperature=args.temperature, architecture=args.architecture, projection=projection,
        added=special_token_ids(tokenizer), longest=max(config.query_max_len, config.passage_max_len),
        mask_false_negatives=args.mask_false_negatives, cross_device=args.negatives_cross_device,
        distillation=args.kd_loss_type if data_args.knowledge_distillation else None,
        mrl_dims=args.mrl_dims if args.use_mrl else ())


def run(model_args, data_args, args):
    """Train from the last complete checkpoint, or from the start, and export the model."""
    output, config = Path(args.output_dir), encoder_config_from_arguments(model_args, data_args, args)
    check_shared(output)
    rows = read_rows(data_args.train_data, data_args.knowledge_distillation)
    step = args.per_device_train_batch_size * WORLD_SIZE
    if args.dataloader_drop_last and len(rows) < step:
        raise UserError(f"{len(rows)} training queries are fewer than the {step} of a step: use more queries or a "
                        "smaller batch size")
    dev = read_collection(Path(data_args.dev_data)).split("dev") if data_args.dev_data else None
    if dev is not None and not dev.queries:
        raise UserError(f"{data_args.dev_data} has no dev queries: it needs qrels/dev.tsv")
    # Rank 0 decides, since other nodes may see new files on a shared disk later.
    found = broadcast_from_rank_0(last_checkpoint(output) if RANK == 0 else None)
    checkpoint = found and output / found
    if checkpoint:
        log_line(f"continuing from {checkpoint}")
    transformers.set_seed(args.seed)
    if args.reranker:
        tokenizer, model = load_reranker_model(args, config, args.new_head)
        collator = PairCollator(tokenizer, config, BATCH_OVERHEAD_TOKENS[args.device.type])
    else:
        tokenizer, model = load_model(model_args, data_args, args, config)
        collator = Collator(tokenizer, config, BATCH_OVERHEAD_TOKENS[args.device.type], args.grad_cache_chunk or None,
                            data_args.pad_to_multiple_of, args.query_expansion)
    if args.lora_rank:
        sizes = [(weights.numel(), weights.requires_grad) for weights in model.parameters()]
        log_line(f"LoRA: {sum(size for size, trained in sizes if trained):,} of {sum(size for size, _ in sizes):,} "
                 "weights are trained")
    if dev is not None:
        args.eval_strategy, args.eval_steps = transformers.IntervalStrategy.STEPS, args.dev_steps
        args.metric_for_best_model, args.greater_is_better = SELECTION_METRIC, True
        args.eval_on_start = checkpoint is None
        options = (dev, data_args.dev_corpus_size, collator if args.reranker else tokenizer, config, args.seed,
                   args.device)
        dev = RerankerDevEvaluator(*options) if args.reranker else DevEvaluator(*options, args.query_expansion)
    trainer = Trainer(
        model=model, args=args, dev=dev, processing_class=tokenizer,
        train_dataset=TrainingSet(rows, config, data_args.train_group_size, args.seed),
        sampler=EpochSampler(len(rows), args.per_device_train_batch_size,
                             args.seed if args.data_seed is None else args.data_seed, args.dataloader_drop_last),
        data_collator=collator)
    if dev is not None and args.patience:
        trainer.add_callback(transformers.EarlyStoppingCallback(args.patience))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if RANK == 0:
        finish(trainer, config, output)
    trainer.accelerator.wait_for_everyone()


def last_checkpoint(output):
    """Name of the last complete checkpoint in a folder, or None; removes those that a stopped process left incomplete.
    """
    complete = complete_checkpoints(output)
    for folder in output.glob("checkpoint-*"):
        if folder not in complete:
            remove_checkpoint(folder)
    return complete[0].name if complete else None


def finish(trainer, config, output):
    """Export the best model (without a dev set, the last one) and remove the checkpoints."""
    state, kind = trainer.state, "reranker" if trainer.args.reranker else "model"
    best = state.best_global_step or state.global_step
    if best != state.global_step:
        trainer.load_weights(output / f"checkpoint-{best}")
    curve = [row for row in read_log(output) if SELECTION_METRIC in row]
    kept = (finish_reranker if trainer.args.reranker else finish_model)(trainer, config, output, best, curve)
    for folder in output.glob("checkpoint-*"):
        remove_checkpoint(folder)
    before = curve[0][SELECTION_METRIC] if curve and curve[0]["step"] == 0 and kind == "model" else 0
    if state.best_metric is not None and state.best_metric < before:
        log_line(f"warning: on the dev set the best checkpoint ({SELECTION_METRIC} {state.best_metric:.4f}) is worse "
                 f"than the base model ({before:.4f})")
    log_line(f"finished after {state.global_step} steps, kept step {kept}: the {kind} is in {output}")


def finish_model(trainer, config, output, best, curve):
    """Export the embedding model of step `best`, which is loaded; returns `best`. `curve` are the dev metrics."""
    card = {"training rows": len(trainer.train_dataset), "steps": f"{best} of {trainer.state.max_steps}",
            **(read_json(output / "training.json") or {}).get("settings", {})}
    encoder = trainer.model.encoder
    encoder = encoder.merge_and_unload() if isinstance(encoder, peft.PeftModel) else encoder
    multi_vector = trainer.args.architecture != "single_vector"
    export(encoder, trainer.processing_class, output, config, dense=trainer.model.dense, card=card, curve=curve,
           projection=trainer.model.projection if multi_vector else None, expansion=trainer.args.query_expansion)
    return best


def finish_reranker(trainer, config, output, best, curve):
    """Export the reranker of step `best`, or the initial one (step 0) if training did not improve dev metrics."""
    dev, model, calibration = trainer.dev, trainer.model, None
    before = curve[0] if curve and curve[0]["step"] == 0 and not trainer.args.new_head else None
    if dev is not None:
        scores = dev.scores(model) if dev.latest is None or best != trainer.state.global_step else dev.latest
        after = dev.measure(scores)
        for warning in training_warnings(before, after, dev.of_bm25):
            log_line(f"warning: {warning}")
        if before and after[SELECTION_METRIC] <= before[SELECTION_METRIC]:
            _, model = load_reranker_model(trainer.args, config, new_head=False)
            best, scores = 0, dev.scores(model.to(trainer.args.device))
            log_line(f"the initial reranker is kept: {config.name}")
        calibration = calibrate(scores, dev.right)
        log_line("probability that a passage is relevant: sigmoid({scale:.3f} x score {bias:+.3f}); log loss on dev "
                 "{log_loss:.4f}, of sigmoid(score) {log_loss_before:.4f}".format(**calibration))
    export_reranker(model.encoder, trainer.processing_class, output, config.query_max_len + config.passage_max_len,
                    calibration, config.trusted)
    return best


def log_line(line):
    if RANK == 0:
        print(line, flush=True)


def train(arguments):
    """Run one training with the given command-line flags. Raises UserError."""
    logging.basicConfig(level=logging.ERROR)  # hide the libraries' messages, except errors
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    parsed = parse(arguments)
    check_same_arguments(arguments, parsed[1].train_data)
    output = Path(parsed[2].output_dir)
    if RANK:  # only rank 0 takes the lock; the others wait for it at the first collective call
        return run(*parsed)
    if (output / "model.safetensors").exists():
        raise UserError(f"{output} already holds a finished model: use another --output_dir or move the model away")
    with try_lock(output):
        run(*parsed)


def main():
    try:
        train(sys.argv[1:])
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
