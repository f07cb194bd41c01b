"""From a raw BERT to an embedding model, and an honest measure of what that bought.

One module is one stage of the data's way; each imports only from modules above it in this list:

    files        reading and writing without half-written files; the one error type
    labels       what a model may be called, and which names are reserved
    seals        whether a file is still what was written
    shown        what a notebook shows of the settings
    settings     every setting, in one table
    recipes      the fine-tunings that there are, from profiles/recipes.toml
    hub          one question to the model hub before anything is loaded from it, and the one door for loading

    data/texts         when two texts are the same, or nearly
    data/collection    queries, corpus, judgements and parts, in memory and on disk
    data/readers         what a reader of pairs yields, and the register of readers
    data/tables          rows of CSV, JSON, Parquet and of data sets of the hub
    data/docstrings      pairs from the docstrings of installed packages
    data/document_files  what stands in a file of text, Markdown, HTML or PDF
    data/documents       passages of a folder of documents, and pseudo-queries for them
    data/sources         pairs in any form, cleaned in one way
    data/elsewhere       test sets of other domains
    data/split         leak-free train / dev / test split
    data/negatives     random negatives, and the filter of mined ones

    retrieval/cpu          linear layers and dropout by quicker ways on a CPU
    retrieval/layout       texts in batches of like length
    retrieval/vectors      vectors on disk, found by what they were made of
    retrieval/compiled     ONNX and OpenVINO in the place of PyTorch
    retrieval/model_use    how a model is used, read from the model
    retrieval/loading      a model's encoder and the layers after it, whole or not at all
    retrieval/tokens       vectors of tokens, and MaxSim
    retrieval/encoder      a model turned into vectors
    retrieval/runs         runs and judgements in TREC's formats
    retrieval/words        a text cut into words, by script and language
    retrieval/onnx_queries   queries turned into vectors without PyTorch
    retrieval/nearest        nearest vectors by comparing all, shard after shard
    retrieval/vector_index   where nearest vectors are looked for: exactly, by faiss, in Milvus
    retrieval/retrievers   dense, BM25 and fused: from queries to a run
    retrieval/blocks         what very many queries find, block by block on disk
    retrieval/second_stage   a second look at what a first stage has found
    retrieval/late             by the vectors of tokens
    retrieval/token_search     the same over all passages, as a first stage
    retrieval/m3               by all three scores of BGE-M3
    retrieval/cross_encoder    by reading query and passage together
    retrieval/stages           the second stages that there are

    training/store         training rows by id, over one store of passages that is mapped from disk
    training/audit         nothing of the test part is in a training file
    training/rows          training files, made anew only when something changed
    training/mining        hard negatives and a teacher's scores
    training/batches       what a training step draws, and how its texts are laid out
    training/loss          the loss over a batch, and GradCache
    training/dev           the look at the dev set while the training goes on
    training/checkpoints   checkpoints that are whole or absent
    training/log           the log of a training
    training/processes     what the processes of a training agree on
    training/flags         what a training is told
    training/trainer       the training loop
    training/reranker      what a reranker's training has of its own
    training/export_late   the part of a finished folder that compares by tokens
    training/model_card    the card of a finished model, which says how it is used
    training/export        a finished model folder that three libraries read alike
    training/merge         a fine-tuned model averaged with its base
    training/train         one training, as told by flags
    training/launch        the processes of a training, on one machine or several
    training/records       what a finished model was trained from

    evaluation/metrics        recall, MRR, nDCG from a run and judgements
    evaluation/significance   which differences between models are real
    evaluation/data_report    what the data are like, before any training
    evaluation/results        what was measured, and the planned comparison of it
    evaluation/second_stage   how deep a second stage looks, and what it weighs, by dev queries
    evaluation/recommend      what to take, by the numbers
    evaluation/figures        tables, plots and sentences for the reader
    evaluation/curve          the learning curve, and what twice as many pairs would bring
    evaluation/page           a page to look at every query under every model

    cluster      a function over shares, by the machines of a Ray cluster
    encode       vectors by several processes, before they are needed
    threshold    from which score on an answer is likely
    index        an index that is saved, found again quickly, and asked
    search       questions at the command line
    choose_index  which index for this corpus: what each costs and finds, foretold
    live         indexes that stay open, and queries answered together
    serve        questions over HTTP, and a page for them

    finetune     one fine-tuning from its recipe to the finished model
    run          all of it, in order
    smaller      a model compiled to ONNX or OpenVINO, in int8 too, and what that costs and buys
    publish      a model's folder for the hub, with what was measured
"""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else ONNX Runtime reports its use to its makers, unasked
sys.modules.setdefault("openvino_telemetry", None)  # and so do OpenVINO, when it is imported, and NNCF
# nbformat imports it, through jsonschema, for a check of addresses that no notebook needs: six seconds, each time.
sys.modules.setdefault("rfc3987_syntax", None)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s takes JAX where it is installed, and JAX most of a GPU's memory

_needed = ("torch", "transformers", "FlagEmbedding", "faiss")
_missing = [name for name in _needed if importlib.util.find_spec(name) is None]
if _missing:
    _python = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
    _advice = f"run it with {_python}" if _python.exists() else "run `make install` first"
    _message = f"error: {sys.executable} has no package {_missing[0]}: {_advice}, or `source .venv/bin/activate`"
    raise SystemExit(_message) if sys.argv[0] == "-m" else ImportError(_message)
