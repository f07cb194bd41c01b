"""Labels: the names of models and retrievers in folders, files and tables, and the reserved names."""

import re
from collections.abc import Container

RERANKER_KINDS = "late", "m3", "rerank"  # a reranker's label is KIND_MODEL or KIND_MODEL_on_FIRST
SYSTEM_LABELS = "label of a system: bm25, raw, reference, a recipe, hybrid_LABEL .."  # for --help
COMPILED_FORMATS = ("onnx", "onnx-int8", "openvino", "openvino-int8", "openvino-bf16")  # label: MODEL-FORMAT
PREFIXES = ("hybrid_", *(f"{kind}_" for kind in RERANKER_KINDS))
RESERVED = (
    "bm25", "raw", "reference",
    "cache", "data", "index", "notebooks", "publish", "report", "results", "runs",  # in OUTPUT_DIR
    "comparison", "recommendation",  # in OUTPUT_DIR/results
    "raw_bert", "bge_m3", "train_hard", "train_neg10", "train_neg50")  # eval_NAME.ipynb in OUTPUT_DIR/notebooks
LABEL_RULE = (f"a label has letters, digits, _ and -, does not begin with {', '.join(PREFIXES)} or end in -onnx, "
              f"-openvino, -int8, -bf16, and is none of {', '.join(RESERVED)}")


def is_valid_label(label: str) -> bool:
    """Whether a new model or retriever may have this label (see LABEL_RULE).

    Case is ignored, since some file systems ignore it.
    """
    lower = label.lower()
    return bool(re.fullmatch(r"[\w-]+", label, re.ASCII)) and lower not in RESERVED and not (
        lower.startswith(PREFIXES) or lower.endswith(tuple(f"-{form}" for form in COMPILED_FORMATS)))


def repeated_label(label: str, recipes: Container[str]) -> str | None:
    """The label in `recipes` whose repetition with another seed has this label, or None."""
    found = re.fullmatch(r"(.+)_seed\d+", label)
    return found[1] if found and found[1] in recipes else None
