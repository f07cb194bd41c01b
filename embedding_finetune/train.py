"""Training: FlagEmbedding's encoder-only runner, made to resume, to survive, to show its curve and to export correctly.

    torchrun --nproc_per_node 1 -m embedding_finetune.train FLAGS

FLAGS are those of FlagEmbedding.finetune.embedder.encoder_only.base plus the ones declared below. The output folder holds,
while training, the checkpoints that are still needed (the last, the best by dev metric) and `training_log.jsonl`; in the
end the model. The same command continues an interrupted run from its last complete checkpoint and ends with the same
parameters.
"""

import contextlib
import fcntl
import json
import logging
import os
import random
import resource
import shutil
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from FlagEmbedding.finetune.embedder.encoder_only.base import (
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderRunner,
    EncoderOnlyEmbedderTrainer,
    EncoderOnlyEmbedderTrainingArguments,
)
from safetensors import SafetensorError

from embedding_finetune.batches import CALL_COST, Collator, DrawingSampler, TrainingSet, sub_batches
from embedding_finetune.contrastive import ContrastiveModel, grad_cache_step
from embedding_finetune.cpu import use_fast_dropout, use_fast_linear
from embedding_finetune.export import export
from embedding_finetune.files import ExperimentError, read_jsonl, run_command_line, sha256, write_json
from embedding_finetune.hub import check_lengths
from embedding_finetune.training_files import read_training_file

RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
LOG_NAME, MARKER_NAME = "training_log.jsonl", "complete.json"
# What must not change between an interrupted run and its continuation.
RUN_SETTINGS = (
    "model_name_or_path sentence_pooling_method normalize_embeddings temperature train_group_size query_max_len passage_max_len "
    "query_instruction_for_retrieval query_instruction_format passage_instruction_for_retrieval passage_instruction_format "
    "knowledge_distillation kd_loss_type use_mrl mrl_dims shuffle_ratio mask_false_negatives negatives_cross_device seed data_seed "
    "per_device_train_batch_size gradient_accumulation_steps dataloader_drop_last learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_grad_norm num_train_epochs max_steps optim bf16 fp16 grad_cache_chunk fast_cpu dev_steps dev_corpus_size"
).split()


@dataclass
class DataArguments(EncoderOnlyEmbedderDataArguments):
    dev_data: str = field(default=None, metadata={"help": "JSON lines of query, pos, prompt: dev queries for the curve and the choice "
                                                          "of the best checkpoint."})
    dev_corpus: str = field(default=None, metadata={"help": "JSON lines of id, text: where the dev corpus is sampled from."})
    dev_corpus_size: int = field(default=2000, metadata={"help": "Passages sampled from --dev_corpus beside the dev positives."})

    def __post_init__(self):
        if not self.train_data:
            raise ExperimentError("--train_data is missing: name the training file")
        for path in self.train_data:
            if not os.path.exists(path):
                raise ExperimentError(f"{path} does not exist: it is made by the build notebooks")
        super().__post_init__()


@dataclass
class TrainArguments(EncoderOnlyEmbedderTrainingArguments):
    grad_cache_chunk: int = field(default=0, metadata={"help": "Train in the memory of so many texts, whatever the batch (GradCache)."})
    mask_false_negatives: bool = field(default=True, metadata={"help": "Never count a positive of a query as its negative."})
    dev_steps: float = field(default=0.2, metadata={"help": "Steps between dev evaluations; below 1 a share of all steps."})
    fast_cpu: bool = field(default=True, metadata={"help": "On a CPU, linear layers and dropout by quicker ways (see cpu.py)."})


def parse(arguments):
    """The three groups of FlagEmbedding's arguments; raises ExperimentError for a flag that does not exist or does not fit."""
    parser = transformers.HfArgumentParser((EncoderOnlyEmbedderModelArguments, DataArguments, TrainArguments))

    def refuse(message):
        raise ExperimentError(f"{message}; see `python -m embedding_finetune.train --help`")

    parser.error = refuse
    try:
        return parser.parse_args_into_dataclasses(arguments)
    except (ValueError, ImportError) as error:
        raise ExperimentError(f"flags do not fit: {_one_line(error)}") from None


def check(model_args, data_args, args):
    """Find the mistakes that can be found without loading the model; raises ExperimentError."""
    if (Path(args.output_dir) / "model.safetensors").exists():
        raise ExperimentError(f"{args.output_dir} already holds a finished model: choose another --output_dir or move it aside")
    unsupported = [flag for flag, given in (("--same_dataset_within_batch", data_args.same_dataset_within_batch),
                                            ("--deepspeed", args.deepspeed), ("--fsdp", args.fsdp),
                                            ("--sub_batch_size (use --grad_cache_chunk)", args.sub_batch_size)) if given]
    if unsupported:
        raise ExperimentError(f"{unsupported[0]} is not supported by this trainer; run FlagEmbedding's own (TRAINER=flagembedding)")
    if args.n_gpu > 1:
        raise ExperimentError(f"{args.n_gpu} GPUs in one process: start with torchrun --nproc_per_node {args.n_gpu}, "
                              "or choose one by CUDA_VISIBLE_DEVICES")
    if args.negatives_cross_device and WORLD_SIZE == 1:
        raise ExperimentError("--negatives_cross_device needs torchrun with --nproc_per_node 2 or more")
    batch, group = args.per_device_train_batch_size, data_args.train_group_size
    if batch * group * (WORLD_SIZE if args.negatives_cross_device else 1) < 2:
        raise ExperimentError("one candidate per query leaves nothing to tell apart: raise --train_group_size (1) or "
                              "--per_device_train_batch_size (1)")
    if data_args.knowledge_distillation and args.kd_loss_type == "m3_kd_loss" and args.mask_false_negatives:
        raise ExperimentError("m3_kd_loss weighs every passage of the group: give --mask_false_negatives False with it")
    for path in data_args.train_data:
        for file in sorted(Path(path).glob("*.json*")) if os.path.isdir(path) else [path]:
            read_training_file(file, teacher=data_args.knowledge_distillation)
    if bool(data_args.dev_data) != bool(data_args.dev_corpus):
        raise ExperimentError("--dev_data and --dev_corpus belong together: give both or none")
    check_lengths(model_args.config_name or model_args.model_name_or_path, cache_dir=model_args.cache_dir, token=model_args.token,
                  query_max_len=data_args.query_max_len, passage_max_len=data_args.passage_max_len)


def _one_line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__


class DevSet:
    """Dev queries over their positives and a seeded sample of the corpus: recall@10 and MRR@10."""

    def __init__(self, data_args, tokenizer, seed, device):
        rows = read_jsonl(data_args.dev_data, required=("query", "pos"))
        positives = {text: None for row in rows for text in row["pos"]}  # a dict keeps the order
        others = [row["text"] for row in read_jsonl(data_args.dev_corpus, required=("id", "text")) if row["text"] not in positives]
        others = random.Random(seed).sample(others, min(data_args.dev_corpus_size, len(others)))
        corpus = {text: number for number, text in enumerate(dict.fromkeys([*positives, *others]))}
        self.positives = [{corpus[text] for text in row["pos"]} for row in rows]
        self.device = device

        def lay_out(texts, max_length):
            token_ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
            return sub_batches(tokenizer, token_ids, CALL_COST[device.type], limit=64)

        def with_instruction(row):
            instruction = row.get("prompt", data_args.query_instruction_for_retrieval)
            return data_args.query_instruction_format.format(instruction, row["query"])

        instructed = data_args.query_instruction_for_retrieval is not None
        queries = [with_instruction(row) if instructed else row["query"] for row in rows]
        if data_args.passage_instruction_for_retrieval is not None:
            corpus = [data_args.passage_instruction_format.format(data_args.passage_instruction_for_retrieval, text) for text in corpus]
        self.queries = lay_out(queries, data_args.query_max_len)
        self.corpus = lay_out(list(corpus), data_args.passage_max_len)

    def _encode(self, model, laid_out):
        texts, rows = laid_out
        pooled = [model([{name: tensor.to(self.device) for name, tensor in sub.items()}]) for sub in texts]
        vectors = torch.cat(pooled).float()[rows.to(self.device)]
        return torch.nn.functional.normalize(vectors, dim=-1) if model.normalize_embeddings else vectors

    @torch.inference_mode()
    def evaluate(self, model):
        """{"recall@10", "mrr@10"}, means over the queries; equal scores are ranked in the order of the corpus."""
        model.eval()
        scores = self._encode(model, self.queries) @ self._encode(model, self.corpus).T
        rankings = scores.sort(dim=1, descending=True, stable=True).indices[:, :10].tolist()
        recall = reciprocal = 0.0
        for ranking, positives in zip(rankings, self.positives, strict=True):
            hits = [rank for rank, passage in enumerate(ranking, start=1) if passage in positives]
            recall += len(hits) / len(positives)
            reciprocal += 1 / hits[0] if hits else 0
        return {"recall@10": recall / len(rankings), "mrr@10": reciprocal / len(rankings)}


def checkpoint_is_complete(folder):
    """Whether the folder carries its marker and every file the marker lists, in full length."""
    try:
        sizes = json.loads((folder / MARKER_NAME).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def last_checkpoint(output_dir):
    """The complete checkpoint with the most steps, or None; half-written ones are passed over."""
    folders = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda folder: -int(folder.name.rpartition("-")[2]))
    for folder in folders:
        if checkpoint_is_complete(folder):
            return folder
        say(f"passing over {folder}: it was not written to its end")
    return None


def say(line):
    if RANK == 0:
        print(line, flush=True)


class Trainer(EncoderOnlyEmbedderTrainer):
    """FlagEmbedding's trainer with its own batches, GradCache, a dev curve and checkpoints that are whole or absent."""

    def __init__(self, *args, sampler, dev, run_settings, **kwargs):
        super().__init__(*args, eval_dataset=dev, **kwargs)
        self.sampler, self.dev, self.run_settings = sampler, dev, run_settings
        self._staging = None
        self.remove_callback(transformers.PrinterCallback)
        self.add_callback(Progress(self))

    def get_train_dataloader(self):
        args = self.args
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator, num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda", prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return self._checked(super().compute_loss(model, inputs))

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.args.grad_cache_chunk:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        accumulated = self.current_gradient_accumulation_steps
        loss = grad_cache_step(self.model, model, lambda loss: self.accelerator.backward(self._checked(loss) / accumulated),
                               **self._prepare_inputs(inputs))
        return loss / accumulated

    def _checked(self, loss):
        if not torch.isfinite(loss):
            raise ExperimentError(f"the loss became {loss.item()} at step {self.state.global_step + 1}; {self._last_good()}; try a "
                                  "lower learning rate or, with --fp16, --bf16")
        return loss

    def _last_good(self):
        folders = [folder for folder in Path(self.args.output_dir).glob("checkpoint-*") if checkpoint_is_complete(folder)]
        last = max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
        return f"{last} is the last good checkpoint" if last else "there was no checkpoint yet"

    # -- dev curve --

    def evaluate(self, *args, **kwargs):
        metrics = {f"eval_{name}": value for name, value in self.dev.evaluate(self.model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.control.should_save = True
        return is_best

    # -- checkpoints --

    def _get_output_dir(self, trial):
        return str(self._staging or self.args.output_dir)

    def _save(self, output_dir=None, state_dict=None):
        if self.args.should_save:
            self.model.save(output_dir)
            self._save_processing_class(output_dir)

    def _save_checkpoint(self, model, trial=None):
        """Write beside, complete with marker, then rename; remove what is neither the last nor the best."""
        output, step = Path(self.args.output_dir), self.state.global_step
        folder = output / f"checkpoint-{step}"
        if checkpoint_is_complete(folder):
            return
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise ExperimentError(f"parameters are not finite after step {step}; {self._last_good()}; try a lower learning rate")
        self._staging = output / ".checkpoint.partial"
        if RANK == 0:
            shutil.rmtree(self._staging, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if RANK == 0:
                self._publish(self._staging / folder.name, folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(self._staging, ignore_errors=True)
            raise ExperimentError(f"cannot write {folder}: {_one_line(error)}; {self._last_good()}; free some space and run the same "
                                  "command again") from error
        finally:
            self._staging = None
        if RANK == 0:
            for old in output.glob("checkpoint-*"):
                if old.name not in (folder.name, f"checkpoint-{self.state.best_global_step}"):
                    (old / MARKER_NAME).unlink(missing_ok=True)
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _publish(self, written, folder):
        files = [file for file in written.rglob("*") if file.is_file()]
        for file in files:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        write_json(written / MARKER_NAME, {"files": {str(file.relative_to(written)): file.stat().st_size for file in files},
                                           "settings": self.run_settings})
        written.rename(folder)
        shutil.rmtree(self._staging, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """FlagEmbedding saves the inner model without its wrapper's prefix; transformers' loader looks for the prefix."""
        inner = self.model.model
        inner.load_state_dict(type(inner).from_pretrained(resume_from_checkpoint, dtype=inner.dtype).state_dict())


class Progress(transformers.TrainerCallback):
    """One line a logging step on standard output and in training_log.jsonl; tells the sampler its epoch."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.path = Path(args.output_dir) / LOG_NAME
        if RANK == 0:  # forget what lies beyond the checkpoint, and a line cut short
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= state.global_step] \
                if self.path.exists() and state.global_step else []
            self.path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self.began, self.first_step = time.monotonic(), state.global_step
        self.passages = self.seconds = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.sampler.epoch = int(state.epoch)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.monotonic() - self.step_began
        self.passages += (args.per_device_train_batch_size * self.trainer.train_dataset.args.train_group_size
                          * args.gradient_accumulation_steps * WORLD_SIZE)
        if state.global_step == state.max_steps and self.trainer.dev is not None:
            control.should_evaluate = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if RANK or not ("loss" in logs or "eval_mrr@10" in logs):
            return
        row = {"step": state.global_step, "epoch": round(state.epoch, 4)}
        words = [f"step {state.global_step}/{state.max_steps}"]
        if "loss" in logs:
            device = args.device.type
            memory = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            speed = self.passages / max(self.seconds, 1e-9)
            steps = state.global_step - self.first_step
            left = (time.monotonic() - self.began) / max(steps, 1) * (state.max_steps - state.global_step)
            row |= {"loss": logs["loss"], "learning_rate": logs["learning_rate"], "passages_per_second": round(speed, 1),
                    "memory_gb": round(memory / 1e9, 2)}
            words += [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}", f"{speed:.0f} passages/s",
                      f"{_duration(left)} left", f"{memory / 1e9:.1f} GB"]
            self.passages = self.seconds = 0
        else:
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
            row |= metrics
            words += [f"dev {name} {value:.4f}" for name, value in metrics.items()]
            if state.global_step == 0:
                words.append("(before training)")
            elif state.best_metric is None or metrics["mrr@10"] > state.best_metric:
                words.append("(best so far)")
            else:
                words.append(f"(best: {state.best_metric:.4f} at step {state.best_global_step})")
        say("  ".join(words))
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


class Runner(EncoderOnlyEmbedderRunner):
    """FlagEmbedding's runner with the parts of this package."""

    def load_tokenizer_and_model(self):
        tokenizer, plain = super().load_tokenizer_and_model()
        args = self.training_args
        model = ContrastiveModel(
            plain.model, tokenizer=tokenizer, negatives_cross_device=args.negatives_cross_device, temperature=args.temperature,
            kd_loss_type=args.kd_loss_type, use_mrl=args.use_mrl, mrl_dims=args.mrl_dims,
            sentence_pooling_method=args.sentence_pooling_method, normalize_embeddings=args.normalize_embeddings,
            mask_false_negatives=args.mask_false_negatives)
        if args.fast_cpu and args.device.type == "cpu":
            use_fast_dropout(model.model)
            if not args.bf16:  # with it, oneDNN multiplies in bfloat16
                use_fast_linear(model.model)
        return tokenizer, model

    def load_train_dataset(self):
        return TrainingSet(self.data_args, self.tokenizer)

    def load_data_collator(self):
        args = self.training_args
        return Collator(tokenizer=self.tokenizer, query_max_len=self.data_args.query_max_len,
                        passage_max_len=self.data_args.passage_max_len, pad_to_multiple_of=self.data_args.pad_to_multiple_of,
                        call_cost=CALL_COST[args.device.type], limit=args.grad_cache_chunk or None)

    def load_trainer(self):
        args, data_args = self.training_args, self.data_args
        dev = DevSet(data_args, self.tokenizer, args.seed, args.device) if data_args.dev_data else None
        sampler = DrawingSampler(self.train_dataset, args.per_device_train_batch_size, args.seed, args.data_seed,
                                 args.dataloader_drop_last)
        return Trainer(model=self.model, args=args, train_dataset=self.train_dataset, data_collator=self.data_collator,
                       processing_class=self.tokenizer, sampler=sampler, dev=dev, run_settings=self.run_settings())

    def run_settings(self):
        """What identifies a run: the settings that change its outcome, and the content of its files."""
        everything = {**vars(self.model_args), **vars(self.data_args), **vars(self.training_args)}
        settings = {name: everything[name] for name in RUN_SETTINGS}
        files = [file for path in self.data_args.train_data
                 for file in (sorted(Path(path).glob("*.json*")) if os.path.isdir(path) else [path])]
        settings |= {"world_size": WORLD_SIZE, "train_data": [sha256(file) for file in files],
                     "dev_data": self.data_args.dev_data and sha256(self.data_args.dev_data)}
        return json.loads(json.dumps(settings, default=str))

    def run(self):
        args, output = self.training_args, Path(self.training_args.output_dir)
        checkpoint = last_checkpoint(output)
        if checkpoint is not None:
            began_with = json.loads((checkpoint / MARKER_NAME).read_text(encoding="utf-8"))["settings"]
            settings = self.trainer.run_settings
            changed = [name for name in settings if settings[name] != began_with.get(name)]
            if changed:
                raise ExperimentError(f"{output} holds an interrupted run with another {changed[0]} ({began_with.get(changed[0])}, now "
                                      f"{settings[changed[0]]}): set it back, or remove {output}")
            say(f"continuing from {checkpoint}")
        if self.trainer.dev is not None:
            args.eval_strategy, args.eval_steps = transformers.IntervalStrategy.STEPS, args.dev_steps
            args.metric_for_best_model, args.greater_is_better = "mrr@10", True
            args.eval_on_start = checkpoint is None
        self.trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        if RANK == 0:
            self.finish(output)
        self.trainer.accelerator.wait_for_everyone()

    def finish(self, output):
        """Export the best model (the last one without a dev set) and remove the checkpoints."""
        state, data_args, args = self.trainer.state, self.data_args, self.training_args
        best = state.best_global_step or state.global_step
        if best != state.global_step:
            self.trainer._load_from_checkpoint(output / f"checkpoint-{best}")
        log = [json.loads(line) for line in (output / LOG_NAME).read_text(encoding="utf-8").splitlines()]
        curve = [row for row in log if "mrr@10" in row]
        export(self.model.model, self.tokenizer, output, pooling=args.sentence_pooling_method, normalize=args.normalize_embeddings,
               query_instruction=data_args.query_instruction_for_retrieval, query_format=data_args.query_instruction_format,
               passage_instruction=data_args.passage_instruction_for_retrieval, passage_format=data_args.passage_instruction_format,
               query_max_length=data_args.query_max_len, passage_max_length=data_args.passage_max_len,
               card={"base model": self.model_args.model_name_or_path, "training rows": len(self.train_dataset),
                     "steps": f"{best} of {state.max_steps}", **self.trainer.run_settings}, curve=curve)
        for folder in output.glob("checkpoint-*"):
            (folder / MARKER_NAME).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        if curve and curve[0]["step"] == 0 and state.best_metric is not None and state.best_metric < curve[0]["mrr@10"]:
            say(f"warning: on the dev set the best checkpoint (mrr@10 {state.best_metric:.4f}) stays behind the base model "
                f"({curve[0]['mrr@10']:.4f})")
        say(f"finished after {state.global_step} steps, kept step {best}: the model is in {output}")


@contextlib.contextmanager
def alone_in(folder):
    """Hold the folder's lock; raises ExperimentError when another training does. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ExperimentError(f"another training (process {file.read().strip() or 'unknown'}) is writing to {folder}: wait for it, "
                                  "end it, or choose another --output_dir") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def quiet():
    """Silence what libraries say on the way; errors still come through."""
    logging.basicConfig(level=logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    import datasets
    datasets.disable_progress_bars()


def train(arguments):
    """Run one training, as told by command-line flags."""
    quiet()
    model_args, data_args, training_args = parse(arguments)
    training_args.disable_tqdm = True
    output = Path(training_args.output_dir)
    if RANK:  # rank 0 finds the mistakes; the others wait for it when the processes meet
        Runner(model_args, data_args, training_args).run()
        return
    check(model_args, data_args, training_args)
    with alone_in(output):
        shutil.rmtree(output / ".checkpoint.partial", ignore_errors=True)
        Runner(model_args, data_args, training_args).run()


def main():
    try:
        train(sys.argv[1:])
    except OSError as error:
        raise ExperimentError(_one_line(error)) from error
    except Exception:
        if RANK:  # most likely rank 0 has failed: let it speak, torchrun then ends this process
            time.sleep(5)
        raise


if __name__ == "__main__":
    run_command_line(main)
