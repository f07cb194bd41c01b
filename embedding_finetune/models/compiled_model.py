"""Models compiled to ONNX or OpenVINO: run by the library of the format, in the place of PyTorch's.

The folder of a compiled model has `compiled.json` (of what it was made, and how) where others have PyTorch's weights;
the graph lies where sentence-transformers looks for it (`backend="onnx"` or `"openvino"`). Everything else in it is as
in any other model's folder, so that whatever takes a model's label or folder takes this one.
"""

import functools
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import torch

from embedding_finetune.artifacts.manifest import COMPILED_RECORD
from embedding_finetune.files import UserError, one_line, read_json

GRAPHS = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


def compiled_format(name):
    """`onnx` or `openvino` for the folder of a compiled model, None for any other folder or name."""
    return (read_json(Path(name) / COMPILED_RECORD) or {}).get("format")


def runtime_versions(name):
    """Package and version that run the model of a folder, a dict; {} where that is PyTorch."""
    return {package: importlib.metadata.version(package) for kind, package in RUNTIMES.items()
            if kind == compiled_format(name)}


class CompiledModel:
    """A graph that is called as transformers' models are; it takes as many threads as PyTorch would, and computes what
    is not quantised in float32, or in bfloat16 where its record says so.

    Raises UserError when the folder's graph is missing or broken, or when this processor has no bfloat16.
    """

    def __init__(self, folder):
        record = read_json(Path(folder) / COMPILED_RECORD)
        kind, precision = record["format"], record.get("precision", "f32")
        path, threads = Path(folder) / GRAPHS[kind], torch.get_num_threads()
        if precision == "bf16" and not has_bf16():
            raise UserError(f"{folder} computes in bfloat16, for which this processor has no instructions: use the "
                            "model that it was made of, or another of its forms, here")
        try:
            self._run = _onnx(path, threads) if kind == "onnx" else _openvino(path, threads, precision)
        except Exception as error:  # each library has exceptions of its own, down to plain Exception
            raise UserError(f"cannot load {path} ({one_line(error)}); make it anew with `python -m "
                            "embedding_finetune.contrib.onnx_openvino`") from None

    def __call__(self, **batch):
        """Tensors of the tokenizer by name -> last_hidden_state (texts, tokens, dimensions)."""
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
    """The process's one OpenVINO, which also reads and writes graphs.

    A second one leaves the main thread without its signal stack when it goes (2026.4.1): the process dies of the
    next signal that has a handler, such as the end of a child process after a DataLoader's workers.
    """
    import openvino
    return openvino.Core()


def has_bf16():
    """Whether OpenVINO computes in bfloat16 on this processor, which AVX-512 or AMX must have for it."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _openvino(path, threads, precision):
    wanted = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    model = openvino_core().compile_model(str(path), "CPU", wanted)
    return lambda batch: model(batch)["last_hidden_state"]
