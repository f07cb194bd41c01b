"""Labels: what a model or a retriever may be called in folders, files and tables, and which names are reserved."""

import re

RERANKER_KINDS = "late", "m3", "rerank"  # of second stages, whose labels are KIND_MODEL or KIND_MODEL_on_FIRST
COMPILED_FORMATS = ("onnx", "onnx-int8", "openvino", "openvino-int8", "openvino-bf16")  # of compiled models: MODEL-FORM
PREFIXES = ("hybrid_", *(f"{kind}_" for kind in RERANKER_KINDS))
RESERVED = (
    "bm25", "raw", "reference",
    "cache", "data", "index", "notebooks", "publish", "report", "results", "runs",  # in OUTPUT_DIR
    "comparison",  # in OUTPUT_DIR/results
    "raw_bert", "bge_m3", "train_hard", "train_neg10", "train_neg50")  # eval_NAME.ipynb in OUTPUT_DIR/notebooks
LABEL_RULE = (f"a label has letters, digits, _ and -, does not begin with {', '.join(PREFIXES)} or end in -onnx, -openvino, "
        f"-int8, -bf16, and is none of {', '.join(RESERVED)}")


def is_valid_label(label):
    """Whether a new model or retriever may have this label: see RULE. A disk may not tell capitals from small letters.
    """
    small = label.lower()
    return bool(re.fullmatch(r"[\w-]+", label, re.ASCII)) and small not in RESERVED and not (
        small.startswith(PREFIXES) or small.endswith(tuple(f"-{form}" for form in COMPILED_FORMATS)))


def repeated_label(label, recipes):
    """The label among `recipes` whose repetition with another seed has this label; None where there is none."""
    found = re.fullmatch(r"(.+)_seed\d+", label)
    return found[1] if found and found[1] in recipes else None
