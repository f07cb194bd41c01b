"""A model's encoder, and the Dense layers that some have after their pooling: loaded whole, or not at all."""

import os

import torch

from embedding_finetune.files import UserError
from embedding_finetune.hub import ENCODER_HALF, UNLOADABLE, cannot_load, load, pinned, read_model_file


class DenseLayers(torch.nn.ModuleList):
    """sentence-transformers' Dense layers, one after the other, in float32; most models have none."""

    @classmethod
    def load(cls, name, folders):
        """The layers in `folders` of the model `name`, separated by spaces. Raises UserError when they do not load."""
        if not folders:
            return cls()
        from sentence_transformers.sentence_transformer.modules import Dense  # takes seconds, and few models need it
        repository, at = pinned(name)
        try:
            return cls(Dense.load(repository, subfolder=folder, **at) for folder in folders.split()).float()
        except UNLOADABLE as error:
            raise cannot_load(name, error) from None

    @property
    def folders(self):
        """Where `save` puts them, separated by spaces."""
        return " ".join(f"{number}_Dense" for number in range(2, 2 + len(self)))

    def save(self, folder):
        """Write each layer as sentence-transformers keeps it."""
        for path, layer in zip(self.folders.split(), self):
            os.makedirs(os.path.join(folder, path), exist_ok=True)
            layer.save(os.path.join(folder, path))

    def forward(self, pooled):
        """Vectors [.., dim] -> vectors [.., the last layer's dim]."""
        with torch.autocast(pooled.device.type, enabled=False):
            for layer in self:
                pooled = layer({layer.module_input_name: pooled.float()})[layer.module_output_name]
        return pooled


def encoding_dtype(name, device):
    """What the model `name` encodes in on a device: float32 on a CPU, else float16.

    A model that was saved in bfloat16, whose values may be beyond float16's range, is encoded in bfloat16, or in
    float32 on a GPU that has none.
    """
    if device == "cpu":
        return torch.float32
    config = read_model_file(name, "config.json")
    if "bfloat16" not in (config.get("dtype"), config.get("torch_dtype")):
        return torch.float16
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def load_encoder(name, folders="", trusted=False, dtype=torch.float32, **options):
    """(transformers model, DenseLayers) of the model `name`, which has Dense layers in `folders`; see hub.load.

    Raises UserError when it cannot be had, or when weights are missing: transformers would draw them at random.
    """
    config = load("AutoConfig", name, trusted, **options)
    half = config.model_type in ENCODER_HALF
    if config.is_encoder_decoder and not half:
        raise UserError(f"{name} is an encoder-decoder ({config.model_type}), of which no embedding model is made here")
    model, report = load("AutoModelForTextEncoding" if half else "AutoModel", name, trusted, dtype=dtype,
                         output_loading_info=True, **options)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # the pooler is not used
    if missing:
        raise UserError(f"{name} lacks weights of a {type(model).__name__} ({missing[0]} and {len(missing) - 1} more): "
                        "it is incomplete, or needs its own program code (TRUST_REMOTE_CODE)")
    dense = DenseLayers.load(name, folders)
    if dense and dense[0].in_features != config.hidden_size:
        raise UserError(f"{name} has a Dense layer for {dense[0].in_features} dimensions, and vectors of "
                        f"{config.hidden_size}")
    return model, dense
