"""Checks before the first training step: whatever the finished model needs is tried on the untrained one."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from embedding_finetune.files import UserError, is_disk_error, is_memory_error, one_line
from embedding_finetune.hub import load
from embedding_finetune.models.modeling import DenseLayers, load_encoder
from embedding_finetune.models.multi_vector import load_projection, new_projection
from embedding_finetune.training.arguments import TrainingSettings
from embedding_finetune.training.export import export
from embedding_finetune.training.reranker import export_reranker, load_reranker_model

CHECKPOINTS = 3  # at the same time: the best, the last, and the one that is being written


def preflight(training: TrainingSettings, folder: Path) -> None:
    """Check tokenizer, disk space and export of the untrained model to `folder`, which is removed afterwards.

    Prints a line per check. Raises UserError when the finished model could not be written or loaded.
    """
    config, began = training.encoder, time.monotonic()
    transformers.logging.disable_progress_bar()
    if training.kind == "cross_encoder":
        tokenizer, model = load_reranker_model(config, training.new_head, torch.device("cpu"))
        model, dense = model.encoder, DenseLayers()
    else:
        tokenizer = load("AutoTokenizer", config.name, config.trusted)
        model, dense = load_encoder(config.name, config.dense, config.trusted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"preflight: {check_tokenizer(config.name, tokenizer, model)}")
    print(f"preflight: {check_disk(training, model, shutil.disk_usage(folder.parent).free)}")
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    try:
        _export(training, tokenizer, model, dense, folder / "model")
    except (UserError, OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        if is_disk_error(error) or is_memory_error(error):
            raise
        raise UserError(f"{config.name} cannot be exported ({one_line(error)}): no finished model could be loaded, so "
                        "nothing is trained; choose another base model") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("preflight: the untrained model is exported and loads in transformers, sentence-transformers and "
          f"FlagEmbedding ({time.monotonic() - began:.0f} s)", flush=True)


def check_tokenizer(title: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> str:
    """A line on the tokenizer of the model `title`; raises UserError when it cannot pad or belongs to another model."""
    if tokenizer.pad_token_id is None:
        token = tokenizer.eos_token or "[PAD]"
        raise UserError(f"{title}: its tokenizer has no padding token, which batches need; copy the model and add "
                        f'"pad_token": "{token}" to its tokenizer_config.json')
    largest, rows = max(tokenizer.get_vocab().values()), len(model.get_input_embeddings().weight)
    if largest >= rows:
        raise UserError(f"{title}: its tokenizer has token ids up to {largest}, but the model has only {rows} token "
                        "embeddings: they do not belong together")
    pad = getattr(model.config, "pad_token_id", None)
    if "roberta" in model.config.model_type and pad != tokenizer.pad_token_id:  # its positions depend on the padding
        raise UserError(f"{title}: its tokenizer pads with the token id {tokenizer.pad_token_id}, the model with "
                        f"{pad}: they do not belong together")
    return f"the tokenizer pads with {tokenizer.pad_token}; {largest + 1} token ids, {rows} token embeddings"


def check_disk(training: TrainingSettings, model: torch.nn.Module, free: int) -> str:
    """A line on the disk space of the training; raises UserError when `free` bytes are too few.

    A checkpoint holds the weights in float32 and, for trained weights, two moments of Adam.
    """
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    trained = 0 if training.lora_rank else 4 * sum(parameter.numel() for parameter in model.parameters()
                                                   if parameter.requires_grad)
    needed = weights + CHECKPOINTS * (weights + 2 * trained)
    text = f"about {needed / 1e9:.1f} GB of disk space are needed, and {free / 1e9:.1f} GB are free"
    if needed > free:
        raise UserError(f"{text}: free some, or choose another OUTPUT_DIR")
    return text


def _export(training, tokenizer, model, dense, folder):
    config = training.encoder
    if training.kind == "cross_encoder":
        export_reranker(model, tokenizer, folder, config.query_max_len + config.passage_max_len, config.trusted)
    else:
        projection = None
        if training.architecture != "single_vector":
            projection = load_projection(config.name) or new_projection(model.config.hidden_size, training.token_dim)
        export(model, tokenizer, folder, config, dense=dense, projection=projection, expansion=training.query_expansion)
