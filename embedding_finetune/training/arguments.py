"""Command-line flags of a training: those of FlagEmbedding.finetune.embedder.encoder_only.base, and the ones below."""

import os
from dataclasses import dataclass, field

import transformers
from FlagEmbedding.finetune.embedder.encoder_only.base import (
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderTrainingArguments,
)

from embedding_finetune.files import UserError, one_line
from embedding_finetune.models.encoder_config import EncoderConfig, from_files
from embedding_finetune.training.distributed import WORLD_SIZE

UNSUPPORTED = ("same_dataset_within_batch", "shuffle_ratio", "deepspeed", "fsdp", "sub_batch_size")


@dataclass
class DataArguments(EncoderOnlyEmbedderDataArguments):
    dev_data: str = field(default=None, metadata={"help": "Collection folder; its dev queries select the checkpoint."})
    dev_corpus_size: int = field(default=2000, metadata={"help": "Passages sampled in addition to dev positives."})

    def __post_init__(self):
        missing = [path for path in self.train_data or ["--train_data"] if not os.path.isfile(path)]
        if missing:
            raise UserError(f"{missing[0]} does not exist or is not a file: run a build notebook to make it")
        super().__post_init__()


@dataclass
class TrainArguments(EncoderOnlyEmbedderTrainingArguments):
    kd_loss_type: str = field(default="kl_div", metadata={"choices": ["kl_div", "m3_kd_loss", "margin_mse"]})
    architecture: str = field(default="single_vector", metadata={
        "help": "single_vector (inner product), multi_vector (MaxSim over token vectors), or both."})
    token_dim: int = field(default=0, metadata={"help": "Dimension of the token vectors; 0: the model's."})
    query_expansion: int = field(default=0, metadata={"help": "Pad queries to this many tokens with mask tokens."})
    reranker: bool = field(default=False, metadata={"help": "Train a cross-encoder reranker."})
    new_head: bool = field(default=False, metadata={"help": "Initialize the reranker's head at random, on an encoder."})
    lora_rank: int = field(default=0, metadata={"help": "Train adapters of this rank instead of all weights (LoRA)."})
    lora_alpha: float = field(default=32.0, metadata={"help": "Adapter outputs are scaled by lora_alpha / lora_rank."})
    grad_cache_chunk: int = field(default=0, metadata={"help": "Texts per sub-batch of GradCache; 0: no GradCache."})
    mask_false_negatives: bool = field(default=True, metadata={"help": "Mask a query's positives among its negatives."})
    dev_steps: float = field(default=0.2, metadata={"help": "Steps between dev evaluations; below 1, a fraction."})
    patience: int = field(default=0, metadata={"help": "Stop after this many dev evaluations without improvement."})


def parse(arguments):
    """Parse command-line flags into FlagEmbedding's (model, data, training) arguments, extended.

    Raises UserError for flags that are unknown, invalid or incompatible.
    """
    parser = transformers.HfArgumentParser((EncoderOnlyEmbedderModelArguments, DataArguments, TrainArguments))

    def refuse(message):
        raise UserError(message)

    parser.error = refuse
    try:
        model_args, data_args, args = parser.parse_args_into_dataclasses(arguments)
    except (ValueError, ImportError) as error:
        raise UserError(f"invalid flags: {one_line(error)}") from None
    unsupported = [name for name in UNSUPPORTED if getattr(data_args, name, None) or getattr(args, name, None)]
    if unsupported:
        refuse(f"--{unsupported[0]} is not supported by this trainer; use FlagEmbedding's (TRAINER=flagembedding)")
    if args.n_gpu > 1:
        refuse(f"{args.n_gpu} GPUs in one process: start with torchrun --nproc_per_node {args.n_gpu}, or select one "
               "with CUDA_VISIBLE_DEVICES")
    if args.negatives_cross_device and WORLD_SIZE == 1:
        refuse("--negatives_cross_device needs torchrun with --nproc_per_node 2 or more")
    if args.per_device_train_batch_size * data_args.train_group_size * WORLD_SIZE < 2:
        refuse("one candidate per query leaves no negatives: raise --train_group_size (1) or "
               "--per_device_train_batch_size (1)")
    if data_args.knowledge_distillation and args.kd_loss_type == "m3_kd_loss" and args.mask_false_negatives:
        refuse("m3_kd_loss weights every passage of the group: use it with --mask_false_negatives False")
    if args.use_mrl and (args.architecture != "single_vector" or args.reranker):
        refuse("--use_mrl truncates single vectors: use it with --architecture single_vector, without --reranker")
    args.disable_tqdm, args.log_level_replica = True, "error"
    return model_args, data_args, args


def encoder_config_from_arguments(model_args, data_args, args):
    """The EncoderConfig the model is trained with. Raises UserError if an instruction format is not a plain prefix."""
    prompts = []
    for side in ("query", "passage"):
        instruction = getattr(data_args, f"{side}_instruction_for_retrieval")
        template = getattr(data_args, f"{side}_instruction_format")
        before, text, after = template.format(instruction, "\0").partition("\0") if instruction else ("", "\0", "")
        if not text or after:
            raise UserError(f"the format {template!r} does not put the prompt before the text: use {{}}{{}}")
        prompts.append(before)
    name, trusted = model_args.model_name_or_path, model_args.trust_remote_code
    return EncoderConfig("", name, name, args.sentence_pooling_method, *prompts, data_args.query_max_len,
                         data_args.passage_max_len, args.normalize_embeddings,
                         "" if args.reranker else from_files(name, trusted).get("dense", ""), trusted)
