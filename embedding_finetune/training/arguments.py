"""The settings of one training, resolved and stored in its folder, and the arguments of the trainers made from them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.files import UserError
from embedding_finetune.models.encoder_config import EncoderConfig

SETTINGS = "settings.json"
KD_LOSSES = {"kl": "kl_div", "margin": "margin_mse"}  # DISTILLATION_LOSS -> kd_loss_type
MODULES = {"bi_encoder": "FlagEmbedding.finetune.embedder.encoder_only.base",
           "cross_encoder": "FlagEmbedding.finetune.reranker.encoder_only.base"}


@dataclass(frozen=True)
class TrainingSettings:
    """All that the processes of a training need to know. They read it in the training's folder, so that a process that
    is restarted, or one on another machine, does not depend on a profile or recipe that was edited meanwhile.

    Fields without a comment are those of Settings, with the recipe's values.
    """

    label: str
    kind: str  # "bi_encoder" or "cross_encoder", as in the recipe
    encoder: EncoderConfig  # the initial model, its pooling and prompts, and the lengths of the finished model
    training_file: str
    data: str  # folder of the collection whose dev queries select the checkpoint; "" for none
    batch_size: int
    train_group_size: int
    learning_rate: float
    epochs: float
    seed: int
    query_max_len: int = 0  # tokens in training; 0: that of `encoder`
    passage_max_len: int = 0
    warmup_ratio: float = 0.1
    temperature: float = 0.02
    precision: str = "fp32"  # fp32, bf16 or fp16
    cpu: bool = False  # train on the CPU, whatever the machine has
    teacher: bool = False  # distillation from the scores in the training file
    new_head: bool = False  # a cross-encoder's head is initialised at random
    distillation_loss: str = "kl"
    architecture: str = "single_vector"
    token_dim: int = 0
    query_expansion: int = 0
    matryoshka_dims: tuple = ()  # with the full dimension; () for the full dimension alone
    lora_rank: int = 0
    lora_alpha: float = 32.0
    grad_cache_chunk: int = 0
    mask_false_negatives: bool = True  # mask a query's positives among its negatives
    dev_steps: float = 0.1
    dev_corpus_size: int = 2000
    patience: int = 0
    logging_steps: int = 10
    save_steps: float = 0.2  # steps between checkpoints; below 1: a fraction of all steps
    max_steps: int = 0  # 0: as many as the epochs have
    gpus: int = 1
    nnodes: int = 1

    @property
    def encoder_in_training(self) -> EncoderConfig:
        """The encoder with the lengths of the training."""
        return dataclasses.replace(self.encoder, query_max_len=self.query_max_len or self.encoder.query_max_len,
                                   passage_max_len=self.passage_max_len or self.encoder.passage_max_len)

    @property
    def processes(self) -> int:
        """Number of processes on all nodes."""
        return self.gpus * self.nnodes


def write_settings(folder: Path, training: TrainingSettings) -> None:
    """Write the TrainingSettings of the training in a folder."""
    write_checksummed(folder / SETTINGS, dataclasses.asdict(training))


def read_settings(folder: str | Path) -> TrainingSettings:
    """The TrainingSettings of the training in a folder. Raises UserError if they are missing or damaged."""
    path = Path(folder) / SETTINGS
    values: Any = read_checksummed(path)
    try:
        return TrainingSettings(**values | {"encoder": EncoderConfig(**values["encoder"]),
                                            "matryoshka_dims": tuple(values["matryoshka_dims"])})
    except (TypeError, KeyError):  # None, or fields of another version
        raise UserError(f"{path} is missing, damaged or of another version: start the training with `python -m "
                        "embedding_finetune train`, which writes it") from None


def training_arguments(training: TrainingSettings, output: str | Path, dev: bool = False) -> TrainingArguments:
    """The transformers arguments of a training that writes to `output`; `dev` is whether there are dev queries."""
    evaluation: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": training.dev_steps} if dev else {}
    return TrainingArguments(**_common(training, output), **evaluation, save_strategy="steps",
                             save_steps=training.save_steps, log_level_replica="error")


def _common(training, output) -> dict[str, Any]:
    """Arguments of our trainer and of FlagEmbedding's, as far as they differ from their defaults."""
    optional = {"use_cpu": training.cpu, "max_steps": training.max_steps,
                training.precision: training.precision != "fp32"}
    return {"output_dir": str(output), "per_device_train_batch_size": training.batch_size,
            "learning_rate": training.learning_rate, "num_train_epochs": training.epochs,
            "warmup_steps": training.warmup_ratio, "seed": training.seed, "logging_steps": training.logging_steps,
            "dataloader_drop_last": True, "report_to": "none", "disable_tqdm": True,
            **{name: value for name, value in optional.items() if value}}


def stock_flags(training: TrainingSettings, output: str | Path, train_data: str | Path,
                base: str | None = None) -> list[str]:
    """Flags for FlagEmbedding's own trainer (see MODULES) with the same settings, a list of words.

    `train_data` is a training file in FlagEmbedding's format, `base` a folder that replaces the name of the model.
    """
    encoder = training.encoder_in_training
    values = {"model_name_or_path": base or encoder.name, "train_data": train_data,
              "cache_path": Path(output).parent / ".cache", "train_group_size": training.train_group_size,
              "query_max_len": encoder.query_max_len, "passage_max_len": encoder.passage_max_len,
              "trust_remote_code": encoder.trusted, "knowledge_distillation": training.teacher,
              **_common(training, output), "save_strategy": "no"}
    if training.kind == "cross_encoder":
        values["max_len"] = encoder.query_max_len + encoder.passage_max_len
    else:
        values |= {"sentence_pooling_method": encoder.pooling, "normalize_embeddings": str(encoder.normalize),
                   "temperature": training.temperature,
                   "negatives_cross_device": training.processes > 1, "use_mrl": bool(training.matryoshka_dims),
                   "mrl_dims": list(training.matryoshka_dims),
                   "kd_loss_type": training.teacher and KD_LOSSES[training.distillation_loss]}
        for side, prompt in (("query", encoder.query_prompt), ("passage", encoder.passage_prompt)):
            values |= {f"{side}_instruction_for_retrieval": prompt,
                       f"{side}_instruction_format": bool(prompt) and "{}{}"}
    words = []
    for name, value in values.items():
        if value is not False and value not in ("", []):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
