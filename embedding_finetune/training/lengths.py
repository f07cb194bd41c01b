"""Maximum lengths in training that follow the data: QUERY_MAX_LEN=auto and PASSAGE_MAX_LEN=auto.

A length fits 95 % of the queries (passages) of the training split, as far as the model and MEMORY_BUDGET allow. A
training step then does not pay for a few long texts. The finished model keeps the limit of its base model.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from embedding_finetune.data.collection import Collection
from embedding_finetune.hub import load, positions_of
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.setting_checks import AUTO
from embedding_finetune.settings import Settings

SHARE = 0.95  # of the texts that are not truncated
MULTIPLE = 8  # lengths are multiples of it, as hardware prefers
SAMPLE = 10_000  # texts of each side that are tokenized


def resolve_lengths(tuned: Settings, config: EncoderConfig, collection: Collection,
                    pairs: bool = False) -> dict[str, int]:
    """Lengths in training, in tokens: {"query_max_len", "passage_max_len"}; prints those that are not given.

    `tuned` are the settings with the recipe's overrides, `config` is the initial model. With `pairs`, for
    cross-encoders, query and passage share the positions of the model. Raises UserError when the model is not
    available.
    """
    given = {"query": tuned.query_max_len, "passage": tuned.passage_max_len}
    limits, lengths = {"query": config.query_max_len, "passage": config.passage_max_len}, {}
    for side, wanted in given.items():
        if pairs and side == "passage":
            limits[side] = min(limits[side], positions_of(config.name, config.trusted) - lengths["query"])
        if wanted != AUTO:
            lengths[side] = min(int(wanted), limits[side])
            continue
        lengths[side] = fitting_length(config, _texts(tuned, config, collection, side), limits[side])
        reason = f"{SHARE:.0%} of the training texts are not longer"
        if lengths[side] == limits[side]:
            reason = "the model reads no more"
        if side == "passage":
            allowed = affordable_length(tuned, config, lengths["query"], lengths[side], pairs)
            if allowed < lengths[side]:
                lengths[side] = allowed
                reason = f"longer texts could take more than MEMORY_BUDGET={tuned.memory_budget:g}"
        print(f"{side.upper()}_MAX_LEN=auto: {lengths[side]} tokens in training ({reason}); the finished model reads "
              f"{limits[side]}", flush=True)
    return {f"{side}_max_len": length for side, length in lengths.items()}


def _texts(settings: Settings, config: EncoderConfig, collection: Collection, side: str) -> list[str]:
    """A seeded sample of the training queries, or of their positives, with the prompt."""
    train = collection.split("train")
    prompt, texts = config.query_prompt, list(train.queries.values())
    if side == "passage":
        prompt, texts = config.passage_prompt, [train.corpus[key] for key in train.positive_pool()[0]]
    return [prompt + texts[place] for place in settings.rng().permutation(len(texts))[:SAMPLE]]


def fitting_length(config: EncoderConfig, texts: Iterable[str], limit: int) -> int:
    """The length in tokens that SHARE of the texts do not exceed, a multiple of MULTIPLE, at most `limit`."""
    tokenizer = load("AutoTokenizer", config.name, config.trusted)
    sizes = [len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]]
    fits = int(np.quantile(sizes, SHARE, method="inverted_cdf"))
    return min(limit, -(-fits // MULTIPLE) * MULTIPLE)


def affordable_length(tuned: Settings, config: EncoderConfig, query_length: int, wanted: int, pairs: bool) -> int:
    """The largest multiple of MULTIPLE up to `wanted` at which a step of the longest texts fits MEMORY_BUDGET.

    At least MULTIPLE. GRAD_CACHE_CHUNK limits the texts whose activations are kept.
    """
    shape = load("AutoConfig", config.name, config.trusted)
    value_bytes = 4 if tuned.precision in ("auto", "fp32") else 2
    most = tuned.grad_cache_chunk or tuned.batch_size * (tuned.train_group_size + 1)
    passages = min(most, tuned.batch_size * tuned.train_group_size)
    queries = 0 if pairs else min(most - passages, tuned.batch_size)

    def needed(length: int) -> float:
        return (passages * activation_bytes(shape, length + query_length * pairs, value_bytes)
                + queries * activation_bytes(shape, query_length, value_bytes))

    shorter = range((wanted - 1) // MULTIPLE * MULTIPLE, MULTIPLE, -MULTIPLE)
    return next((length for length in (wanted, *shorter) if needed(length) <= tuned.memory_budget * 1e9), MULTIPLE)


def activation_bytes(shape: Any, length: int, value_bytes: int) -> float:
    """Bytes that a transformer keeps of a text of `length` tokens for the backward pass, without fused attention.

    Per layer length x hidden x (17 + 2.5 x heads x length / hidden) values of `value_bytes` bytes (Korthikanti et al.
    2022, arXiv 2205.05198, equation 2, which counts 2 bytes per value). `shape` is the model's transformers
    configuration.
    """
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    return shape.num_hidden_layers * length * (17 * hidden + 2.5 * heads * length) * value_bytes
