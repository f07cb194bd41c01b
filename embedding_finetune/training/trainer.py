"""transformers' Trainer with GradCache, dev evaluation, atomic checkpoints and a readable log."""

import json
import os
import resource
import shutil
import time
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

from embedding_finetune.artifacts.staging import commit, complete_checkpoints, is_complete, remove_checkpoint
from embedding_finetune.files import UserError, is_disk_error, one_line, write_jsonl
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.models.multi_vector import MULTI_VECTOR_FOLDER
from embedding_finetune.settings import SELECTION_METRIC
from embedding_finetune.training.distributed import broadcast_from_rank_0
from embedding_finetune.training.log import LOG_NAME, duration, read_log
from embedding_finetune.training.loss import grad_cache_step


class Trainer(transformers.Trainer):
    """Trains a ContrastiveModel or RerankerModel on the batches of `sampler`.

    `dev` is a DevEvaluator, a RerankerDevEvaluator, or None.
    """

    def __init__(self, *args, sampler, dev, **kwargs):
        super().__init__(*args, eval_dataset=dev, **kwargs)
        self.sampler, self.dev, self._staging = sampler, dev, None
        self.remove_callback(transformers.PrinterCallback)
        self.add_callback(Progress(self))

    def get_train_dataloader(self):
        args = self.args
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers, prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda")
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return self._checked(model(**inputs)["loss"])

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.args.grad_cache_chunk:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        accumulated = self.current_gradient_accumulation_steps

        def backward(loss):
            self.accelerator.backward(self._checked(loss) / accumulated)

        return grad_cache_step(self.model, model, backward, **self._prepare_inputs(inputs)) / accumulated

    def _checked(self, loss):
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {self.state.global_step + 1}; {self._last_good()}; "
                            "try a lower learning rate or, with --fp16, --bf16")
        return loss

    def _last_good(self):
        folders = complete_checkpoints(self.args.output_dir)
        return f"{folders[0]} is the last good checkpoint" if folders else "there was no checkpoint yet"

    # -- dev evaluation --

    def evaluate(self, *args, **kwargs):
        measured = broadcast_from_rank_0(self.dev.evaluate(self.model) if self.is_world_process_zero() else None)
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:  # whatever save_strategy is: transformers does neither with "no"
            self.state.best_global_step, self.control.should_save = self.state.global_step, True
        return is_best

    # -- checkpoints --

    def _get_output_dir(self, trial):
        return str(self._staging or self.args.output_dir)

    def _save(self, output_dir=None, state_dict=None):
        if self.args.should_save:
            self.model.encoder.save_pretrained(output_dir)
            self.model.dense.save(output_dir)
            self.model.projection.save(Path(output_dir) / MULTI_VECTOR_FOLDER)
            self.processing_class.save_pretrained(output_dir)

    def _save_checkpoint(self, model, trial=None):
        """Write a checkpoint to a staging folder, commit it by renaming, and remove all but the last and the best.

        Raises UserError if a parameter is not finite or the disk fails.
        """
        output, step, first = Path(self.args.output_dir), self.state.global_step, self.is_world_process_zero()
        folder = output / f"checkpoint-{step}"
        if broadcast_from_rank_0(is_complete(folder)):
            return
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise UserError(f"parameters are not finite after step {step}; {self._last_good()}; try a lower learning "
                            "rate")
        self._staging = output / ".checkpoint.partial"
        if first:
            shutil.rmtree(self._staging, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if first:
                commit(self._staging / folder.name, folder)
        except Exception as error:
            if isinstance(error, UserError) or not is_disk_error(error):
                raise
            raise UserError(f"cannot write {folder}: {one_line(error)}; {self._last_good()}; free some space and run "
                            "the same command again") from error
        finally:
            if first:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        for old in output.glob("checkpoint-*") if first else ():
            if old.name not in (folder.name, f"checkpoint-{self.state.best_global_step}"):
                remove_checkpoint(old)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Load a checkpoint: the encoder (with LoRA, only its adapters), without its wrapper's prefix, and the layers
        after it."""
        encoder, folder = self.model.encoder, Path(resume_from_checkpoint)
        for layers, place in ((self.model.dense, folder), (self.model.projection, folder / MULTI_VECTOR_FOLDER)):
            layers.load_state_dict(DenseLayers.load(place, layers.folders).state_dict())
        if isinstance(encoder, peft.PeftModel):
            adapters = load_file(folder / peft.utils.SAFETENSORS_WEIGHTS_NAME)
            peft.set_peft_model_state_dict(encoder, adapters)
        else:
            encoder.load_state_dict(type(encoder).from_pretrained(folder, dtype=encoder.dtype).state_dict())


class Progress(transformers.TrainerCallback):
    """Logs one line per logging step to standard output and training_log.jsonl, and sets the sampler's epoch."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.path = Path(args.output_dir) / LOG_NAME
        state.compute_steps(args, state.max_steps)  # otherwise LOGGING_STEPS of the checkpoint would be used
        if state.is_world_process_zero:  # drop rows after the checkpoint and truncated lines
            rows = [row for row in read_log(args.output_dir) if state.global_step and row["step"] <= state.global_step]
            write_jsonl(self.path, rows)
        self.began, self.first_step = time.monotonic(), state.global_step
        self.passages = self.seconds = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.sampler.epoch = int(state.epoch)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.monotonic() - self.step_began
        self.passages += (args.per_device_train_batch_size * self.trainer.train_dataset.group
                          * args.gradient_accumulation_steps * args.world_size)
        if state.global_step == state.max_steps and self.trainer.dev is not None:
            control.should_evaluate = True

    def on_log(self, args, state, control, logs=None, **kwargs):
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
