"""What a notebook shows of the settings in force, with the machine and the versions that a figure depends on."""

import html
import importlib.metadata

PACKAGES = ("FlagEmbedding", "torch", "transformers", "datasets", "faiss-cpu", "numpy", "pandas")


class SettingsView:
    """Settings as a cell of a notebook shows them: those of `names`, and all others folded away."""

    def __init__(self, settings, names):
        everything = {"PROFILE": settings.profile} | settings.as_dict()
        self.chosen, self.rest = {name: everything[name] for name in ("PROFILE", *names)}, everything | versions()

    def __repr__(self):
        return "\n".join(f"{name:26} {value}" for name, value in self.chosen.items())

    def _repr_html_(self):
        def table(rows):
            cells = (f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
            return f"<table>{''.join(cells)}</table>"

        return f"{table(self.chosen)}<details><summary>all settings and versions</summary>{table(self.rest)}</details>"


def versions():
    """The device, and the version of each package that decides a number: name -> text."""
    import torch  # takes seconds to import, and only this needs it
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, **{package: importlib.metadata.version(package) for package in PACKAGES}}
