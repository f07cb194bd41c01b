"""Late interaction: every token of a query looks for its best token in a passage (MaxSim, see tokens).

One vector a passage has to say everything at once; the vectors of its tokens need not. Too many to search through one
by one, they take a second look at what a first stage has found. Any encoder has token vectors, though only a training
for it makes the most of them.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from embedding_finetune.files import UserError, read_json
from embedding_finetune.models.modeling import DenseLayers

FEW = 20  # texts that need no progress bar
INT8 = 127  # what 1 is in int8; a component of a vector of length 1 is no larger
INT8_CHUNK = 1 << 18  # vectors that are turned into int8 together


def maxsim_candidates(query, vectors, starts, places):
    """Mean over a query's tokens of the best cosine with a token of the passage, for the passages at `places`: float32.

    `query` is float32 (tokens, dimensions); `vectors` and `starts` as Encoder.encode_passage_tokens returns them. A
    passage without a token has NO_TOKEN.
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


def pool_tokens(vectors, starts, factor):
    """Vectors and starts with `factor` times fewer vectors: those of a passage that lie close together become one, the
    mean of them (Ward's clustering; Clavié et al. 2024, arXiv 2409.14683, by sentence-transformers)."""
    from sentence_transformers.multi_vector_encoder.modules.token_pooling import HierarchicalTokenPooling

    pooling, texts = HierarchicalTokenPooling(factor, num_protected_tokens=0), pairwise(starts.tolist())
    merged = [pooling.pool_one(torch.from_numpy(vectors[start:end].astype(np.float32))).half().numpy()
              for start, end in tqdm(texts, "merging tokens", len(starts) - 1, disable=len(starts) < FEW)]
    return np.concatenate(merged), np.cumsum([0, *map(len, merged)])


def to_int8(vectors):
    """Components in steps of 1 / INT8, a chunk at a time."""
    found = np.empty(vectors.shape, np.int8)
    for start in range(0, len(vectors), INT8_CHUNK):
        found[start:start + INT8_CHUNK] = np.rint(vectors[start:start + INT8_CHUNK].astype(np.float32) * INT8)
    return found

MULTI_VECTOR_FOLDER, PROJECTION_FOLDER, MULTI_VECTOR_CONFIG = "late", "1_Dense", "sentence_bert_config.json"
NO_TOKEN_SCORE = -1.0  # the lowest cosine: what a query's token finds in a passage without any
MAXSIM_BLOCK = 1 << 26  # cosines that are in memory at once


def special_token_ids(tokenizer):
    """The tokens that a tokenizer adds to every text ([CLS], [SEP]): they say nothing of it, and are left out."""
    return sorted(set(tokenizer("")["input_ids"]))


def load_projection(name):
    """The layer that makes token vectors of last hidden states, as DenseLayers; most models have none."""
    folder = Path(name) / MULTI_VECTOR_FOLDER
    return DenseLayers.load(folder, PROJECTION_FOLDER) if (folder / PROJECTION_FOLDER).is_dir() else DenseLayers()


def new_projection(hidden_size, dim):
    """The same, drawn at random, for `dim` dimensions; none for 0."""
    if not dim:
        return DenseLayers()
    from sentence_transformers.base.modules.dense import Dense
    return DenseLayers([Dense(hidden_size, dim, bias=False, activation_function=torch.nn.Identity(),
                              module_input_name="token_embeddings")])


def load_expansion(name):
    """To how many tokens a model fills up its queries (see `expanded`); 0 for most."""
    return ((read_json(Path(name) / MULTI_VECTOR_FOLDER / MULTI_VECTOR_CONFIG) or {}).get("query_expansion") or {}).get("length", 0)


def expand_queries(tokenizer, token_ids, length):
    """Token ids of queries (a list of lists), filled up to `length` with mask tokens, which look for a passage's tokens
    as the query's own do: ColBERT's query expansion. Raises UserError when the tokenizer has no mask token."""
    if length and tokenizer.mask_token_id is None:
        raise UserError("this model's tokenizer has no mask token to fill up queries with: leave QUERY_EXPANSION out")
    return [[*ids, *[tokenizer.mask_token_id] * (length - len(ids))] for ids in token_ids]


def token_embeddings(hidden, batch, added, projection):
    """Vectors of tokens, of length 1: float32 (texts, tokens, dimensions); zeros where there is no token of the text.

    `hidden` are the last hidden states of `batch`, which has `input_ids` and `attention_mask`; `added` see added_ids.
    """
    kept = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(added, device=hidden.device))
    return normalize(projection(hidden.float()), dim=-1) * kept.unsqueeze(-1)


def maxsim(queries, passages):
    """Every query against every passage: (queries, tokens, dim), (passages, tokens, dim) -> (queries, passages)."""
    queries, passages = _trimmed(queries), _trimmed(passages)
    here, there = queries.any(-1), passages.any(-1)
    scores, flat = [], passages.flatten(0, 1)
    for some in queries.split(max(1, MAXSIM_BLOCK // max(1, queries.shape[1] * len(flat)))):
        cosines = (some.flatten(0, 1) @ flat.T).view(*some.shape[:2], *there.shape)
        scores.append(cosines.masked_fill(~there, NO_TOKEN_SCORE).max(-1).values)  # (some, tokens, passages)
    best = torch.cat(scores) * here.unsqueeze(-1)
    return best.sum(1) / here.sum(1, keepdim=True).clamp(min=1)


def _trimmed(texts):
    """Without the places at the end where no text has a token."""
    used = texts.any(-1).any(0).nonzero()
    return texts[:, :int(used[-1]) + 1 if len(used) else 1]
