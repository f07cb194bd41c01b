"""The vectors of a text's tokens, and how two texts are compared by them: late interaction.

MaxSim: every token of a query looks for its best token in a passage (Khattab and Zaharia, "ColBERT", SIGIR 2020, arXiv
2004.12832); here the mean over the query's tokens, so that scores lie between -1 and 1 as cosines do. A model that was
trained for it has a folder FOLDER, which sentence-transformers' MultiVectorEncoder loads.
"""

from pathlib import Path

import torch
from torch.nn.functional import normalize

from embedding_finetune.files import UserError, read_json
from embedding_finetune.retrieval.loading import DenseLayers

FOLDER, PROJECTION, HOW = "late", "1_Dense", "sentence_bert_config.json"
NO_TOKEN = -1.0  # the lowest cosine: what a query's token finds in a passage without any
TOGETHER = 1 << 26  # cosines that are in memory at once


def added_ids(tokenizer):
    """The tokens that a tokenizer adds to every text ([CLS], [SEP]): they say nothing of it, and are left out."""
    return sorted(set(tokenizer("")["input_ids"]))


def load_projection(name):
    """The layer that makes token vectors of last hidden states, as DenseLayers; most models have none."""
    folder = Path(name) / FOLDER
    return DenseLayers.load(folder, PROJECTION) if (folder / PROJECTION).is_dir() else DenseLayers()


def new_projection(hidden_size, dim):
    """The same, drawn at random, for `dim` dimensions; none for 0."""
    if not dim:
        return DenseLayers()
    from sentence_transformers.base.modules.dense import Dense
    return DenseLayers([Dense(hidden_size, dim, bias=False, activation_function=torch.nn.Identity(),
                              module_input_name="token_embeddings")])


def load_expansion(name):
    """To how many tokens a model fills up its queries (see `expanded`); 0 for most."""
    return ((read_json(Path(name) / FOLDER / HOW) or {}).get("query_expansion") or {}).get("length", 0)


def expanded(tokenizer, token_ids, length):
    """Token ids of queries (a list of lists), filled up to `length` with mask tokens, which look for a passage's tokens
    as the query's own do: ColBERT's query expansion. Raises UserError when the tokenizer has no mask token."""
    if length and tokenizer.mask_token_id is None:
        raise UserError("this model's tokenizer has no mask token to fill up queries with: leave QUERY_EXPANSION out")
    return [[*ids, *[tokenizer.mask_token_id] * (length - len(ids))] for ids in token_ids]


def token_vectors(hidden, batch, added, projection):
    """Vectors of tokens, of length 1: float32 (texts, tokens, dimensions); zeros where there is no token of the text.

    `hidden` are the last hidden states of `batch`, which has `input_ids` and `attention_mask`; `added` see added_ids.
    """
    kept = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(added, device=hidden.device))
    return normalize(projection(hidden.float()), dim=-1) * kept.unsqueeze(-1)


def max_sim(queries, passages):
    """Every query against every passage: (queries, tokens, dim), (passages, tokens, dim) -> (queries, passages)."""
    queries, passages = _trimmed(queries), _trimmed(passages)
    here, there = queries.any(-1), passages.any(-1)
    scores, flat = [], passages.flatten(0, 1)
    for some in queries.split(max(1, TOGETHER // max(1, queries.shape[1] * len(flat)))):
        cosines = (some.flatten(0, 1) @ flat.T).view(*some.shape[:2], *there.shape)
        scores.append(cosines.masked_fill(~there, NO_TOKEN).max(-1).values)  # (some, tokens, passages)
    best = torch.cat(scores) * here.unsqueeze(-1)
    return best.sum(1) / here.sum(1, keepdim=True).clamp(min=1)


def _trimmed(texts):
    """Without the places at the end where no text has a token."""
    used = texts.any(-1).any(0).nonzero()
    return texts[:, :int(used[-1]) + 1 if len(used) else 1]
