"""Export of a multi-vector (late interaction) model for sentence-transformers' MultiVectorEncoder."""

import dataclasses
import os

import numpy as np
import torch

from embedding_finetune.files import UserError
from embedding_finetune.hub import load
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.multi_vector import MULTI_VECTOR_FOLDER, maxsim_candidates, special_token_ids

SAMPLES = ("how far is the moon", "what is a dot product?", "The Moon circles the Earth at a distance of 384,400 km.")


def export_multi_vector(folder, config, projection, expansion=0):
    """Write MULTI_VECTOR_FOLDER into a finished model's folder; weights are hard-linked where the file system allows.

    `config` is an EncoderConfig, `projection` the DenseLayers of the token vectors, if any, and `expansion` the number
    of tokens that queries are padded to (see multi_vector.expand_queries). Returns the lowest cosine between the score
    lists of sentence-transformers and of this package; raises UserError below 0.9999.
    """
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    late, tokenizer = folder / MULTI_VECTOR_FOLDER, load("AutoTokenizer", folder, config.trusted)
    added = tokenizer.convert_ids_to_tokens(special_token_ids(tokenizer))
    kinds = "model_kwargs", "processor_kwargs", "config_kwargs"
    trust = {kind: {"trust_remote_code": config.trusted} for kind in kinds}
    encoder = Transformer(str(folder), **trust, max_seq_length=config.passage_max_len,
                          query_length=config.query_max_len, document_length=config.passage_max_len, query_expansion={
                              "strategy": "min", "attend": True, "length": expansion} if expansion else None)
    MultiVectorEncoder(
        modules=[encoder, *projection, MultiVectorMask(added, skiplist_tasks=["query", "document"]),
                 Normalize(module_input_name="token_embeddings")],
        prompts={"query": config.query_prompt, "document": config.passage_prompt}, similarity_fn_name="meanmaxsim",
    ).save(str(late), create_model_card=False)
    for path in late.glob("*.safetensors"):
        _share(folder / path.name, path)
    return _check(folder, config)


def _share(path, other):
    """Replace the second file by a hard link to the first if possible; both have the same content."""
    partial = other.with_suffix(".partial")
    try:
        os.link(path, partial)
        os.replace(partial, other)
    except OSError:
        partial.unlink(missing_ok=True)


def _check(folder, config):
    from sentence_transformers import MultiVectorEncoder

    texts = [*SAMPLES, f"{SAMPLES[2]} " * (config.query_max_len // 8 + 1)]
    model = MultiVectorEncoder(str(folder / MULTI_VECTOR_FOLDER), device="cpu", trust_remote_code=config.trusted)
    theirs = model.similarity(model.encode_query(texts), model.encode_document(texts)).cpu().float()
    encoder = Encoder(dataclasses.replace(config, name=str(folder)))
    vectors, starts = encoder.encode_passage_tokens(texts)
    ours = np.array([maxsim_candidates(tokens.astype(np.float32), vectors, starts, range(len(texts)))
                     for tokens in encoder.encode_query_tokens(texts)])
    worst = torch.cosine_similarity(torch.from_numpy(ours), theirs, dim=-1).min().item()
    if not worst >= 0.9999 or np.abs(ours - theirs.numpy()).max() > 0.01:
        raise UserError(f"parity check of {folder / MULTI_VECTOR_FOLDER}: the scores of sentence-transformers differ "
                        f"(cosine {worst:.4f}); the model was not exported")
    return worst
