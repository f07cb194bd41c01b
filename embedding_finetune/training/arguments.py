"""The flags of a training: those of FlagEmbedding.finetune.embedder.encoder_only.base plus the ones declared below."""

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
    dev_data: str = field(default=None, metadata={"help": "A collection's folder; dev queries choose the checkpoint."})
    dev_corpus_size: int = field(default=2000, metadata={"help": "Passages sampled from it beside the dev positives."})

    def __post_init__(self):
        missing = [path for path in self.train_data or ["--train_data"] if not os.path.isfile(path)]
        if missing:
            raise UserError(f"{missing[0]} does not exist or is no file: the build notebooks make training files")
        super().__post_init__()


@dataclass
class TrainArguments(EncoderOnlyEmbedderTrainingArguments):
    kd_loss_type: str = field(default="kl_div", metadata={"choices": ["kl_div", "m3_kd_loss", "margin_mse"]})
    architecture: str = field(default="single_vector", metadata={"help": "dense, late (MaxSim over tokens), or both."})
    token_dim: int = field(default=0, metadata={"help": "Dimensions of the tokens' vectors; 0: the model's."})
    query_expansion: int = field(default=0, metadata={"help": "Fill up queries to so many tokens with mask tokens."})
    reranker: bool = field(default=False, metadata={"help": "Train a reranker of pairs."})
    new_head: bool = field(default=False, metadata={"help": "Its head is drawn at random, on an encoder."})
    lora_rank: int = field(default=0, metadata={"help": "Train adapters of this rank instead of all weights (LoRA)."})
    lora_alpha: float = field(default=32.0, metadata={"help": "What the adapters add counts lora_alpha / lora_rank."})
    grad_cache_chunk: int = field(default=0, metadata={"help": "Train in the memory of so many texts (GradCache)."})
    mask_false_negatives: bool = field(default=True, metadata={"help": "No positive of a query is its negative."})
    dev_steps: float = field(default=0.2, metadata={"help": "Steps between dev evaluations; below 1 a share of all."})
    patience: int = field(default=0, metadata={"help": "End after so many dev evaluations without a better one."})


def parse(arguments):
    """FlagEmbedding's three groups of arguments (model, data, training), extended.

    Raises UserError for a flag that does not exist, does not fit, or cannot work.
    """
    parser = transformers.HfArgumentParser((EncoderOnlyEmbedderModelArguments, DataArguments, TrainArguments))

    def refuse(message):
        raise UserError(message)

    parser.error = refuse
    try:
        model_args, data_args, args = parser.parse_args_into_dataclasses(arguments)
    except (ValueError, ImportError) as error:
        raise UserError(f"flags do not fit: {one_line(error)}") from None
    unsupported = [name for name in UNSUPPORTED if getattr(data_args, name, None) or getattr(args, name, None)]
    if unsupported:
        refuse(f"--{unsupported[0]} is not supported by this trainer; run FlagEmbedding's own (TRAINER=flagembedding)")
    if args.n_gpu > 1:
        refuse(f"{args.n_gpu} GPUs in one process: start with torchrun --nproc_per_node {args.n_gpu}, or choose one by "
               "CUDA_VISIBLE_DEVICES")
    if args.negatives_cross_device and WORLD_SIZE == 1:
        refuse("--negatives_cross_device needs torchrun with --nproc_per_node 2 or more")
    if args.per_device_train_batch_size * data_args.train_group_size * WORLD_SIZE < 2:
        refuse("one candidate per query leaves nothing to tell apart: raise --train_group_size (1) or "
               "--per_device_train_batch_size (1)")
    if data_args.knowledge_distillation and args.kd_loss_type == "m3_kd_loss" and args.mask_false_negatives:
        refuse("m3_kd_loss weighs every passage of the group: give --mask_false_negatives False with it")
    if args.use_mrl and (args.architecture != "single_vector" or args.reranker):
        refuse("--use_mrl truncates a text's one vector: it goes with --architecture single_vector, and with no reranker")
    args.disable_tqdm, args.log_level_replica = True, "error"
    return model_args, data_args, args


def encoder_config_from_arguments(model_args, data_args, args):
    """How the model is trained, and will be used. Raises UserError for a format that is no prompt before the text."""
    prompts = []
    for side in ("query", "passage"):
        instruction = getattr(data_args, f"{side}_instruction_for_retrieval")
        template = getattr(data_args, f"{side}_instruction_format")
        before, text, after = template.format(instruction, "\0").partition("\0") if instruction else ("", "\0", "")
        if not text or after:
            raise UserError(f"the format {template!r} is no prompt before the text: give {{}}{{}}")
        prompts.append(before)
    name, trusted = model_args.model_name_or_path, model_args.trust_remote_code
    return EncoderConfig("", name, name, args.sentence_pooling_method, *prompts, data_args.query_max_len,
                    data_args.passage_max_len, args.normalize_embeddings,
                    "" if args.reranker else from_files(name, trusted).get("dense", ""), trusted)
