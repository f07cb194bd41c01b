"""Inference with models compiled to ONNX or OpenVINO.

The folder of a compiled model holds `compiled.json` (its source and the options of the export) instead of PyTorch
weights. The graph is where sentence-transformers expects it (`backend="onnx"` or `"openvino"`). All other files are
those of any model folder, so a compiled model can be used wherever a label or folder of a model is accepted.
"""

import functools
import importlib.metadata
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from embedding_finetune.artifacts.manifest import COMPILED_RECORD
from embedding_finetune.extras import require
from embedding_finetune.files import UserError, one_line, read_json

GRAPHS = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


def compiled_format(name):
    """Format of a compiled model's folder, `onnx` or `openvino`; None for any other folder or name."""
    return (read_json(Path(name) / COMPILED_RECORD) or {}).get("format")


def runtime_versions(name):
    """Package -> version of the runtime of a compiled model; {} for a PyTorch model."""
    return {package: importlib.metadata.version(package) for kind, package in RUNTIMES.items()
            if kind == compiled_format(name)}


class CompiledModel:
    """Compiled graph with the call signature of a transformers model.

    It uses as many threads as PyTorch would. Layers that are not quantised are computed in float32, or in bfloat16 if
    `compiled.json` says so. Raises UserError when the graph is missing or broken, or this processor lacks bfloat16.
    """

    def __init__(self, folder):
        record = read_json(Path(folder) / COMPILED_RECORD)
        kind, precision = record["format"], record.get("precision", "f32")
        path, threads = Path(folder) / GRAPHS[kind], torch.get_num_threads()
        if precision == "bf16" and not has_bf16():
            raise UserError(f"{folder} computes in bfloat16, for which this processor has no instructions: use the "
                            "model it was compiled from, or another precision")
        try:
            self._run = _onnx(path, threads) if kind == "onnx" else _openvino(path, threads, precision)
        except Exception as error:  # each library raises its own exceptions, some of them plain Exception
            raise UserError(f"cannot load {path} ({one_line(error)}); compile it again with `python -m "
                            "embedding_finetune export`") from None

    def __call__(self, **batch):
        """Map tokenizer tensors by name to an object with `last_hidden_state` (texts, tokens, dimensions)."""
        hidden = self._run({name: tensor.numpy() for name, tensor in batch.items()})
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))


def _onnx(path, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["last_hidden_state"], batch)[0]


@functools.cache
def openvino_core():
    """The single OpenVINO core of this process, also used to read and write graphs.

    Destroying a second core removes the signal stack of the main thread (2026.4.1). The process then crashes at the
    next handled signal, such as the exit of a child process after a DataLoader has had workers.
    """
    return import_silently("openvino").Core()


def import_silently(name):
    """Import `openvino` or `nncf` without their usage reports, which are sent at import except in CI jobs."""
    ci = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        return require(name)
    finally:
        if ci is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = ci


def has_bf16():
    """Whether OpenVINO can compute in bfloat16 on this processor (requires AVX-512 BF16 or AMX)."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _openvino(path, threads, precision):
    wanted = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    model = openvino_core().compile_model(str(path), "CPU", wanted)
    return lambda batch: model(batch)["last_hidden_state"]
