"""ONNX and OpenVINO graphs: export from PyTorch, and inference in place of it.

The folder of a compiled model holds `compiled.json` (its source and the options of the export) instead of PyTorch
weights. The graph is where sentence-transformers expects it (`backend="onnx"` or `"openvino"`). All other files are
those of any model folder, so a compiled model can be used wherever a label or folder of a model is accepted.
PyTorch is imported where it is used: a search does without it (see models.query_encoder).
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_finetune.artifacts.manifest import COMPILED_RECORD
from embedding_finetune.extras import require
from embedding_finetune.files import UserError, one_line, read_json

if TYPE_CHECKING:
    from torch import Tensor

GRAPHS = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
MIN_COSINE = 0.9999  # between the vectors of a float32 graph and those of PyTorch


def compiled_format(name: str | Path) -> str | None:
    """Format of a compiled model's folder, `onnx` or `openvino`; None for any other folder or name."""
    return (read_json(Path(name) / COMPILED_RECORD) or {}).get("format")


def runtime_versions(name: str | Path) -> dict[str, str]:
    """Package -> version of the runtime of a compiled model; {} for a PyTorch model."""
    kind = compiled_format(name)
    return {RUNTIMES[kind]: importlib.metadata.version(RUNTIMES[kind])} if kind else {}


def export_onnx(path: Path, batch: dict[str, Tensor], function: Callable[..., Tensor],
                output: dict[str, dict[int, str]], *parts: Any) -> None:
    """Export a function of tokenised texts to a float32 ONNX graph.

    `function` maps the tensors of `batch` (texts, tokens), given by name, to a tensor; `output` is the name of that
    tensor -> the names of its dynamic axes. `parts` are the PyTorch modules that it calls. The tracing exporter is
    used: the newer one (dynamo=True) gives the same vectors but takes up to a minute instead of seconds. Errors of the
    exporter pass through.
    """
    import torch

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, *tensors: Tensor) -> Tensor:
            return function(**dict(zip(batch, tensors)))

    axes = {name: {0: "texts", 1: "tokens"} for name in batch} | output
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(Graph().eval(), tuple(batch.values()), str(path), dynamo=False, input_names=list(batch),
                          output_names=list(output), dynamic_axes=axes)


def onnx_session(path: Path, threads: int, **entries: str) -> Any:
    """Session of ONNX Runtime on the CPU with so many threads (0: one per core) and configuration entries."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def lowest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Lowest cosine between corresponding rows of two arrays (texts, dimensions)."""
    return float(((one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


class CompiledModel:
    """Compiled graph with the call signature of a transformers model.

    It uses as many threads as PyTorch would. Layers that are not quantised are computed in float32, or in bfloat16 if
    `compiled.json` says so. Raises UserError when the graph is missing or broken, or this processor lacks bfloat16.
    """

    def __init__(self, folder: str | Path) -> None:
        import torch
        record = read_json(Path(folder) / COMPILED_RECORD) or {}
        path, threads = Path(folder) / GRAPHS[record["format"]], torch.get_num_threads()
        precision = record.get("precision", "f32")
        if precision == "bf16" and not has_bf16():
            raise UserError(f"{folder} computes in bfloat16, for which this processor has no instructions: use the "
                            "model it was compiled from, or another precision")
        try:
            if record["format"] == "onnx":
                session = onnx_session(path, threads)
                self._run = lambda batch: session.run(["last_hidden_state"], batch)[0]
            else:
                options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                           "INFERENCE_PRECISION_HINT": precision}
                model = openvino_core().compile_model(str(path), "CPU", options)
                self._run = lambda batch: model(batch)["last_hidden_state"]
        except Exception as error:  # each library raises its own exceptions, some of them plain Exception
            raise UserError(f"cannot load {path} ({one_line(error)}); compile it again with `python -m "
                            "embedding_finetune export`") from None

    def __call__(self, **batch: Tensor) -> SimpleNamespace:
        """Map tokenizer tensors by name to an object with `last_hidden_state` (texts, tokens, dimensions)."""
        import torch
        hidden = self._run({name: tensor.numpy() for name, tensor in batch.items()})
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))


@functools.cache
def openvino_core() -> Any:
    """The single OpenVINO core of this process, also used to read and write graphs.

    Destroying a second core removes the signal stack of the main thread (2026.4.1). The process then crashes at the
    next handled signal, such as the exit of a child process after a DataLoader has had workers.
    """
    return import_silently("openvino").Core()


def import_silently(name: str) -> ModuleType:
    """Import `openvino` or `nncf` without their usage reports, which are sent at import except in CI jobs."""
    ci = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        return require(name)
    finally:
        del os.environ["CI"]
        os.environ |= {"CI": ci} if ci is not None else {}


def has_bf16() -> bool:
    """Whether OpenVINO can compute in bfloat16 on this processor (requires AVX-512 BF16 or AMX)."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
