"""Display of the settings in a notebook, with the machine and the versions that results depend on."""

import html
import importlib.metadata
from typing import Any

PACKAGES = ("FlagEmbedding", "torch", "transformers", "datasets", "faiss-cpu", "numpy", "pandas")


class SettingsView:
    """Settings as shown in a notebook cell: those of `names`, with all others collapsed."""

    def __init__(self, settings: Any, names: tuple[str, ...]):
        everything = {"PROFILE": settings.profile} | settings.as_dict()
        self.chosen, self.rest = {name: everything[name] for name in ("PROFILE", *names)}, everything | versions()

    def __repr__(self):
        return "\n".join(f"{name:26} {value}" for name, value in self.chosen.items())

    def _repr_html_(self):
        def table(rows):
            cells = (f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
            return f"<table>{''.join(cells)}</table>"

        return f"{table(self.chosen)}<details><summary>all settings and versions</summary>{table(self.rest)}</details>"


def has_gpu() -> bool:
    """Whether PyTorch can use a GPU of this machine."""
    import torch  # takes seconds to import, and few need it
    return torch.cuda.is_available()


def versions() -> dict[str, str]:
    """Name -> text: the device, and the versions of the packages that affect results."""
    import torch
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, **{package: importlib.metadata.version(package) for package in PACKAGES}}
