"""Loading of encoders and of the Dense layers that some models have after their pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from embedding_finetune.files import UserError
from embedding_finetune.hub import ENCODER_HALF, UNLOADABLE, cannot_load, load, pinned, read_model_file


class DenseLayers(torch.nn.ModuleList):
    """Sequence of sentence-transformers Dense layers in float32; empty for most models."""

    @classmethod
    def load(cls, name: str | Path, folders: str) -> DenseLayers:
        """Load the layers in `folders` (separated by spaces) of `name`. Raises UserError on failure."""
        if not folders:
            return cls()
        from sentence_transformers.sentence_transformer.modules import Dense  # slow to import, and rarely needed
        repository, at = pinned(name)
        try:
            return cls(Dense.load(repository, subfolder=folder, **at) for folder in folders.split()).float()
        except UNLOADABLE as error:
            raise cannot_load(name, error) from None

    @property
    def folders(self) -> str:
        """Folders written by `save`, separated by spaces."""
        return " ".join(f"{number}_Dense" for number in range(2, 2 + len(self)))

    def save(self, folder: str | Path) -> None:
        """Write each layer in the format of sentence-transformers."""
        layers: list[Any] = list(self)
        for name, layer in zip(self.folders.split(), layers):
            path = Path(folder, name)
            path.mkdir(parents=True, exist_ok=True)
            layer.save(str(path))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map vectors (..., dim) to vectors (..., output dim of the last layer)."""
        with torch.autocast(pooled.device.type, enabled=False):
            for layer in self:
                pooled = layer({layer.module_input_name: pooled.float()})[layer.module_output_name]
        return pooled


def encoding_dtype(name: str, device: str) -> torch.dtype:
    """Data type for encoding with the model `name`: float32 on a CPU, float16 on a GPU.

    A model saved in bfloat16 may exceed the range of float16. On a GPU it is run in bfloat16, or in float32 if the GPU
    lacks bfloat16.
    """
    if device == "cpu":
        return torch.float32
    config = read_model_file(name, "config.json")
    if "bfloat16" not in (config.get("dtype"), config.get("torch_dtype")):
        return torch.float16
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def load_encoder(name: str | Path, folders: str = "", trusted: bool = False, dtype: torch.dtype = torch.float32,
                 **options: Any) -> tuple[Any, DenseLayers]:
    """Load the transformers model and the DenseLayers (in `folders`) of `name`; for `options` see hub.load.

    Raises UserError when the model is not available, or when weights are missing, which transformers would initialise
    at random.
    """
    config = load("AutoConfig", name, trusted, **options)
    half = config.model_type in ENCODER_HALF
    if config.is_encoder_decoder and not half:
        raise UserError(f"{name} is an encoder-decoder ({config.model_type}), which is not supported: choose an "
                        "encoder")
    model, report = load("AutoModelForTextEncoding" if half else "AutoModel", name, trusted, dtype=dtype,
                         output_loading_info=True, **options)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # the pooler is not used
    if missing:
        raise UserError(f"{name} lacks weights of a {type(model).__name__} ({missing[0]} and {len(missing) - 1} more): "
                        "it is incomplete, or needs its own program code (TRUST_REMOTE_CODE)")
    dense = DenseLayers.load(name, folders)
    if dense and dense[0].in_features != config.hidden_size:
        raise UserError(f"{name} has a Dense layer for {dense[0].in_features} dimensions, but vectors of "
                        f"{config.hidden_size}: download it again, or choose another model")
    return model, dense
