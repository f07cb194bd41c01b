"""transformers' Trainer with GradCache, dev evaluation, crash-safe checkpoints and a readable log."""

import json
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_NAME as WEIGHTS

from embedding_finetune.artifacts.manifest import TRAINING_LOG, write_manifest
from embedding_finetune.artifacts.staging import complete_checkpoints, remove_checkpoint
from embedding_finetune.files import UserError, is_disk_error, one_line, write_jsonl
from embedding_finetune.settings import SELECTION_METRIC
from embedding_finetune.training.arguments import TrainingSettings
from embedding_finetune.training.batches import EpochSampler
from embedding_finetune.training.distributed import gather
from embedding_finetune.training.log import duration, read_log
from embedding_finetune.training.loss import grad_cache_step


class Trainer(transformers.Trainer):
    """Trains a ContrastiveModel or RerankerModel on the batches of `sampler`.

    `training` are its TrainingSettings, `dev` is a DevEvaluator, a RerankerDevEvaluator, or None.
    """

    model: Any
    train_dataset: Any

    def __init__(self, *args, training: TrainingSettings, sampler: EpochSampler, dev: Any, **kwargs):
        super().__init__(*args, eval_dataset=dev, **kwargs)
        self.training, self.sampler, self.dev = training, sampler, dev
        self.unfinished_checkpoint: Path | None = None  # folder of the checkpoint that is being written
        self.model.register_load_state_dict_post_hook(_check_loaded)
        self.remove_callback(transformers.PrinterCallback)
        self.add_callback(Progress(self))
        self.add_callback(Checkpoints(self))

    def get_train_dataloader(self):
        return self.accelerator.prepare(torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda"))

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return self._checked(model(**inputs)["loss"])

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.training.grad_cache_chunk:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()

        def backward(loss):
            self.accelerator.backward(self._checked(loss))

        batch: dict[str, Any] = self._prepare_inputs(inputs)
        return grad_cache_step(self.model, model, backward, **batch)

    def _checked(self, loss):
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {self.state.global_step + 1}; {self._last_good()}; "
                            "try a lower learning rate or, with PRECISION=fp16, bf16")
        return loss

    def _last_good(self):
        folders = complete_checkpoints(str(self.args.output_dir))
        return f"{folders[0]} is the last good checkpoint" if folders else "there was no checkpoint yet"

    def evaluate(self, *args, **kwargs):
        measured: Any = gather(self.dev.evaluate(self.model) if self.is_world_process_zero() else None)[0]
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: Any = None, **kwargs):
        """Write the weights of a checkpoint; raises UserError if a parameter is not finite."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise UserError(f"parameters are not finite after step {self.state.global_step}; {self._last_good()}; try "
                            "a lower learning rate")
        self.unfinished_checkpoint = Path(output_dir)
        if self.args.should_save:
            self.unfinished_checkpoint.mkdir(parents=True, exist_ok=True)
            weights = {name: tensor.contiguous() for name, tensor in trained_weights(self.model).items()}
            save_file(weights, self.unfinished_checkpoint / WEIGHTS)

    def load_weights(self, checkpoint: Path) -> None:
        """Set the model to the weights of a checkpoint folder."""
        self.model.load_state_dict(load_file(checkpoint / WEIGHTS), strict=False)  # _check_loaded checks the names

    def train(self, *args, **kwargs):
        """As in transformers; a checkpoint that cannot be written is removed and reported as a UserError."""
        try:
            return super().train(*args, **kwargs)
        except Exception as error:
            folder = self.unfinished_checkpoint
            if folder is None or isinstance(error, UserError) or not is_disk_error(error):
                raise
            if self.is_world_process_zero():
                remove_checkpoint(folder)
            raise UserError(f"cannot write {folder}: {one_line(error)}; {self._last_good()}; free some space and run "
                            "the same command again") from error


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint has to hold of a model, by name: parameters that are trained, and buffers.

    Frozen parameters, such as all but the adapters with LoRA, are those of the initial model. Of tied parameters only
    the first name is listed.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained or name not in parameters}


def _check_loaded(model, incompatible):
    """Hook of load_state_dict: a checkpoint lacks frozen and tied parameters, and nothing else."""
    needed = trained_weights(model)
    wrong = [*incompatible.unexpected_keys, *(name for name in incompatible.missing_keys if name in needed)]
    if wrong:
        raise UserError(f"the checkpoint is of another model or version ({wrong[0]}): remove its folder, and run the "
                        "same command again")
    incompatible.missing_keys.clear()


class Checkpoints(transformers.TrainerCallback):
    """Saves the best model by dev metric, completes each checkpoint with a manifest, keeps only the last and the best.

    transformers writes the files into their final folder, and a folder counts as a checkpoint once it has a manifest.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        best = -math.inf if state.best_metric is None else state.best_metric
        if state.global_step and metrics[f"eval_{SELECTION_METRIC}"] > best:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        wait = self.trainer.accelerator.wait_for_everyone
        wait()  # each process adds its own random state
        if state.is_world_process_zero:
            folder = self.trainer.unfinished_checkpoint
            write_manifest(folder)
            for old in folder.parent.glob("checkpoint-*"):
                if old.name not in (folder.name, f"checkpoint-{state.best_global_step}"):
                    remove_checkpoint(old)
        self.trainer.unfinished_checkpoint = None
        wait()


class Progress(transformers.TrainerCallback):
    """Logs one line per logging step to standard output and training_log.jsonl, and sets the sampler's epoch."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        folder = str(args.output_dir)
        self.path = Path(folder) / TRAINING_LOG
        state.compute_steps(args, state.max_steps)  # otherwise LOGGING_STEPS of the checkpoint would be used
        if state.is_world_process_zero:  # drop rows after the checkpoint and truncated lines
            rows = [row for row in read_log(folder) if state.global_step and row["step"] <= state.global_step]
            write_jsonl(self.path, rows)
        self.began, self.first_step = time.monotonic(), state.global_step
        self.passages = self.seconds = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.sampler.epoch = int(state.epoch)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.monotonic() - self.step_began
        self.passages += args.train_batch_size * self.trainer.train_dataset.group * args.world_size
        if state.global_step == state.max_steps and self.trainer.dev is not None:
            control.should_evaluate = True

    def on_log(self, args, state, control, logs: Any = None, **kwargs):
        if not state.is_world_process_zero or not ("loss" in logs or f"eval_{SELECTION_METRIC}" in logs):
            return
        row = {"step": state.global_step, "epoch": round(state.epoch, 4)}
        new, words = self._training(args, state, logs) if "loss" in logs else self._dev(state, logs)
        print("  ".join([f"step {state.global_step}/{state.max_steps}", *words]), flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | new) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the log must be on disk before the checkpoint is

    def _training(self, args, state, logs):
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        memory = torch.cuda.max_memory_allocated() if args.device.type == "cuda" else memory
        speed = self.passages / max(self.seconds, 1e-9)
        steps = state.global_step - self.first_step
        left = (time.monotonic() - self.began) / max(steps, 1) * (state.max_steps - state.global_step)
        self.passages = self.seconds = 0
        row = {"loss": logs["loss"], "learning_rate": logs["learning_rate"], "passages_per_second": round(speed, 1),
               "memory_gb": round(memory / 1e9, 2)}
        return row, [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}", f"{speed:.0f} passages/s",
                     f"{duration(left)} left", f"{memory / 1e9:.1f} GB"]

    def _dev(self, state, logs):
        metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if state.global_step == 0:
            remark = "(before training)"
        elif state.best_metric is None or metrics[SELECTION_METRIC] > state.best_metric:
            remark = "(best so far)"
        else:
            remark = f"(best: {state.best_metric:.4f} at step {state.best_global_step})"
        return metrics, [*(f"dev {name} {value:.4f}" for name, value in metrics.items()), remark]
