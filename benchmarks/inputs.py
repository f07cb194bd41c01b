"""What the benchmarks read: rows of pairs, the bundled model, and their own memory."""

import ast
import os
import platform
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def read_rows(path=None):
    """Rows of {"query", "pos": [..]}: of a JSONL file, else of numpy's docstrings, whose first paragraph asks for the
    rest, at its full length."""
    from embedding_finetune.files import read_jsonl
    if path:
        return read_jsonl(path, required=("query", "pos"), made_by="you")
    import numpy
    rows = []
    for file in sorted(Path(numpy.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                query, _, passage = (ast.get_docstring(node) or "").partition("\n\n")
                if len(passage) > 200:
                    rows.append({"query": " ".join(query.split()), "pos": [" ".join(passage.split())]})
    return rows


def bundled_model():
    """The folder of all-MiniLM-L6-v2."""
    from embedding_finetune.models.encoder_config import model_path
    return model_path("bundled")


def peak_gb():
    """GB of this process at its peak, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def hardware(gpus=0):
    """What a measurement ran on: the GPU, or cores and processor."""
    import torch
    if gpus and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores, {processor}"
