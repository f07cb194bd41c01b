"""Fine-tune text embedding models and compare them with BM25 and off-the-shelf models.

The modules in data-flow order; each imports only from modules above it:

    files                    reading and writing without half-written files; the error type for users
    extras                   packages read as data, and packages that few users need
    deprecation              old names of settings, recipe keys and commands
    version                  the version of the package
    labels                   which labels a model may have
    setting_checks           what values a setting may have
    paths                    where each file of an experiment is
    profiles                 values of settings from the environment and from profiles/
    settings_view            table of the settings for notebooks
    settings                 all settings: type, default, check, purpose
    hints                    hints for error messages
    recipes                  the fine-tunings in profiles/recipes.toml
    artifacts/manifest       checksums of records and folders
    artifacts/arrays         stored arrays, named by their content
    artifacts/staging        temporary folders, commits by rename, locks
    artifacts/provenance     what an artifact was made from, and whether it is current
    hub                      the Hugging Face Hub: availability, revisions, loading

    data/normalize           when two texts count as the same
    data/near_duplicates     near-duplicate texts by word shingles
    data/collection          queries, corpus, judgments and splits, in memory and on disk
    data/readers             what readers yield, and the register of readers
    data/readers/files       which files a name stands for; unpacking and decoding
    data/readers/json_files  JSON and JSON Lines as tables
    data/readers/formats     CSV, TSV, Parquet and Excel as tables
    data/readers/values      texts, ids and labels in tables
    data/readers/tables      which columns are read, and rows from them
    data/readers/beir        folders with judgments, in the layouts of BEIR and MTEB
    data/readers/docstrings  docstrings of installed packages
    data/documents/files     text, Markdown, HTML and PDF files
    data/documents/chunker   documents split into passages, and pseudo-queries for them
    data/deduplication       rows to queries, passages and judgments without duplicates
    data/splits              leak-free train / dev / test split
    data/cleaning            reading and cleaning pairs of any format
    data/out_of_domain       test sets of other domains
    data/negatives           random negatives, and the filter of mined ones
    data/row_store           training rows by id over one memory-mapped store of passages
    data/leakage             check that training files contain nothing of dev or test

    models/fast_layers       faster dropout on a CPU
    models/batching          length-sorted batches
    models/embedding_cache   embeddings on disk, by model and text
    models/compiled_model    export to ONNX; ONNX and OpenVINO in place of PyTorch
    models/own_config        what a model's own files say of its use
    models/encoder_config    pooling, prompts and lengths of each model
    models/modeling          loading an encoder and the layers after it
    models/multi_vector      token embeddings and MaxSim
    models/encoder           texts to embeddings
    models/flagembedding     the same model in FlagEmbedding, for comparison
    models/query_encoder     query embeddings without PyTorch

    retrieval/analyzer       BM25 tokenization by script and language
    retrieval/base           the retriever interface, ties, top k
    retrieval/trec           run and judgment files in TREC formats
    retrieval/exact_search   exact nearest neighbours
    retrieval/ann            approximate nearest neighbours with faiss
    retrieval/system         what is evaluated, compared and searched
    retrieval/dense          dense retrieval
    retrieval/bm25           BM25
    retrieval/fusion         fusion of BM25 and a dense retriever
    retrieval/resumable_search     searches of very many queries, resumed after an interruption
    retrieval/rerank         the reranker interface, candidates, score interpolation
    retrieval/late_interaction     reranking by token embeddings
    retrieval/cross_encoder  reranking by a cross-encoder
    retrieval/known_systems  systems and rerankers by label

    training/training_data   training files, written again only when something changed
    training/provenance      what a model was trained from
    training/mining          hard negatives and teacher scores
    training/batches         sampling of training batches
    training/loss            the contrastive loss, GradCache
    evaluation/metrics       recall, MRR and nDCG from runs and judgments
    training/lengths         maximum lengths in training that follow the data
    training/arguments       settings of one training, and the arguments of the trainers
    training/dev_evaluator   dev metrics during a training
    training/log             the training log
    training/distributed     agreement among the processes of a training
    training/plan            what a training will do, and the equivalent commands
    training/trainer         the training loop
    training/reranker        training a cross-encoder
    training/model_card      the card of a finished model
    training/export          a model folder that three libraries load
    training/merging         a fine-tuned model averaged with its base
    training/worker          one training process
    training/preflight       checks before the first training step
    training/launcher        the processes of a training on one or several machines
    training/train           from a recipe to a finished model

    evaluation/significance  confidence intervals and paired tests
    evaluation/selection     selection of systems, and defaults where queries are too few
    evaluation/data_report   statistics and problems of the data before training
    evaluation/names         names of systems, and the baseline of a fine-tuned model
    evaluation/results       saved results, and the planned comparison of them
    evaluation/tuning        depth and weights of reranking, tuned on dev queries
    evaluation/conclusion    the recommendation
    evaluation/plots         plots
    evaluation/tables        tables and sentences
    evaluation/evaluate      evaluation of a system
    evaluation/learning_curve      results by number of training queries
    evaluation/report_page   the HTML report

    serving/calibration      what the score of a first hit says
    serving/available        what can be searched
    serving/index            saved indexes
    serving/search           search at the command line
    serving/registry         open indexes and batched queries
    serving/server           HTTP server and search page

    contrib/bge_m3           reranking by the three scores of BGE-M3
    contrib/milvus           approximate nearest neighbours with Milvus
    contrib/ray_encode       functions over shards on a Ray cluster
    models/parallel_encode   encoding by several processes
    contrib/onnx_openvino    export to ONNX and OpenVINO
    contrib/publish          a model's folder for the Hub
    prerequisites            what a run needs, checked before its first step
    pipeline                 the whole experiment in order
    experiment_files         what belongs to a label on disk
    commands                 settings, .env and sizes of an experiment
    cli                      the command line
"""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # turns off telemetry of ONNX Runtime
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s uses JAX if installed, which reserves most of the GPU memory

_needed = ("torch", "transformers", "FlagEmbedding", "faiss")
_missing = [name for name in _needed if importlib.util.find_spec(name) is None]
if _missing:
    _python = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
    _advice = f"run it with {_python}" if _python.exists() else "run `make install` first"
    _message = f"error: {sys.executable} has no package {_missing[0]}: {_advice}, or `source .venv/bin/activate`"
    raise SystemExit(_message) if sys.argv[0] == "-m" else ImportError(_message)
