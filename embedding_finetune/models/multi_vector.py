"""Multi-vector embeddings and MaxSim, the score of late interaction.

MaxSim averages, over the tokens of a query, the highest cosine with a token of the passage (Khattab and Zaharia,
"ColBERT", SIGIR 2020, who sum). Any encoder has token vectors; training for late interaction improves them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from embedding_finetune.files import UserError, read_json
from embedding_finetune.models.modeling import DenseLayers

FEW = 20  # no progress bar for fewer texts
INT8 = 127  # scale of int8 vectors: the components of a unit vector are at most 1
INT8_CHUNK = 1 << 18  # vectors converted to int8 at a time
MAXSIM_BLOCK = 1 << 26  # embeddings and cosines in memory at once
NO_TOKEN_SCORE = -1.0  # score of a passage without tokens: the lowest cosine
MULTI_VECTOR_FOLDER, PROJECTION_FOLDER, MULTI_VECTOR_CONFIG = "late", "1_Dense", "sentence_bert_config.json"


def maxsim_candidates(query: np.ndarray, vectors: np.ndarray, starts: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """MaxSim of a query with the passages at `places`, averaged over the query's tokens: float32 (places,).

    `query` is float32 (tokens, dimensions); `vectors` and `starts` are those of Encoder.encode_passage_tokens. A
    passage without tokens scores NO_TOKEN_SCORE.
    """
    own = [vectors[starts[place]:starts[place + 1]] for place in places]
    sizes = np.array([len(rows) for rows in own], dtype=np.int64)
    scores = np.full(len(places), NO_TOKEN_SCORE, np.float32)
    if sizes.any():
        cosines = (torch.from_numpy(query) @ torch.from_numpy(np.concatenate(own)).float().T).numpy()
        begins = (np.cumsum(sizes) - sizes)[sizes > 0]
        scores[sizes > 0] = np.maximum.reduceat(cosines, begins, axis=1).mean(axis=0)
        if vectors.dtype == np.int8:
            scores[sizes > 0] /= INT8
    return scores


def maxsim(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """MaxSim of all pairs: (queries, tokens, dim), (passages, tokens, dim) -> float32 (queries, passages).

    Vectors of zeros are no tokens. A passage without tokens scores NO_TOKEN_SCORE, a query without tokens 0.
    """
    from sentence_transformers.util import mean_maxsim  # slow to import, and needed in training alone

    (queries, here), (passages, there) = map(_without_padding, (queries, passages))
    if queries.device.type == "cpu":  # where products of many small matrices are slow in bfloat16
        queries, passages = queries.float(), passages.float()
    with torch.autocast("cpu", enabled=False):
        scores = mean_maxsim(queries, passages, here, there, chunk_elements=MAXSIM_BLOCK)
    return scores.masked_fill(~there.any(-1), NO_TOKEN_SCORE) * here.any(-1, keepdim=True)


def _without_padding(vectors):
    """The vectors up to the last token of the longest text, and which of them are tokens."""
    real = vectors.any(-1)
    width = int(real.any(0).nonzero()[-1:].sum()) + 1
    return vectors[:, :width], real[:, :width]


def pool_tokens(vectors: np.ndarray, starts: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce the number of token vectors by `factor`; returns the new vectors and starts.

    Similar vectors of a passage are clustered by Ward's method and replaced by their mean (Clavié et al. 2024, arXiv
    2409.14683; implementation of sentence-transformers).
    """
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    pooling, texts = HierarchicalTokenPooling(factor, num_protected_tokens=0), pairwise(starts.tolist())
    merged = [pooling.pool_one(torch.from_numpy(vectors[start:end].astype(np.float32))).half().numpy()
              for start, end in tqdm(texts, "pooling tokens", len(starts) - 1, disable=len(starts) < FEW)]
    return np.concatenate(merged), np.cumsum([0, *map(len, merged)])


def to_int8(vectors: np.ndarray) -> np.ndarray:
    """Quantise vectors to int8 in steps of 1 / INT8."""
    found = np.empty(vectors.shape, np.int8)
    for start in range(0, len(vectors), INT8_CHUNK):
        found[start:start + INT8_CHUNK] = np.rint(vectors[start:start + INT8_CHUNK].astype(np.float32) * INT8)
    return found


def special_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens a tokenizer adds to every text ([CLS], [SEP]), which late interaction leaves out."""
    return sorted(set(tokenizer("")["input_ids"]))


def load_projection(name: str | Path) -> DenseLayers:
    """Projection of last hidden states to token vectors, as DenseLayers; empty for most models."""
    folder = Path(name) / MULTI_VECTOR_FOLDER
    return DenseLayers.load(folder, PROJECTION_FOLDER if (folder / PROJECTION_FOLDER).is_dir() else "")


def new_projection(hidden_size: int, dim: int) -> DenseLayers:
    """Randomly initialised projection to `dim` dimensions; empty DenseLayers for 0."""
    if not dim:
        return DenseLayers()
    from sentence_transformers.base.modules.dense import Dense
    return DenseLayers([Dense(hidden_size, dim, bias=False, activation_function=torch.nn.Identity(),
                              module_input_name="token_embeddings")])


def load_expansion(name: str | Path) -> int:
    """Number of tokens to which a model expands its queries (see `expand_queries`); 0 for most models."""
    config = read_json(Path(name) / MULTI_VECTOR_FOLDER / MULTI_VECTOR_CONFIG) or {}
    return (config.get("query_expansion") or {}).get("length", 0)


def expand_queries(tokenizer: Any, token_ids: Sequence[list[int]], length: int) -> list[list[int]]:
    """Pad the token ids of queries (a list of lists) to `length` with mask tokens: ColBERT's query expansion.

    The mask tokens take part in MaxSim like tokens of the query. Raises UserError when the tokenizer has no mask token.
    """
    if length and tokenizer.mask_token_id is None:
        raise UserError("this model's tokenizer has no mask token for query expansion: remove QUERY_EXPANSION")
    return [[*ids, *[tokenizer.mask_token_id] * (length - len(ids))] for ids in token_ids]


def token_embeddings(hidden: torch.Tensor, batch: Mapping[str, torch.Tensor], added: Sequence[int],
                     projection: DenseLayers) -> torch.Tensor:
    """Token vectors of length 1: float32 (texts, tokens, dimensions), zero for padding and special tokens.

    `hidden` holds the last hidden states of `batch`, which has `input_ids` and `attention_mask`. `added` holds the ids
    of special tokens, see special_token_ids.
    """
    kept = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(added, device=hidden.device))
    return normalize(projection(hidden.float()), dim=-1) * kept.unsqueeze(-1)
