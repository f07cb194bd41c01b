"""Hints for error messages about missing data and results."""

import glob
import os
from difflib import get_close_matches
from pathlib import Path

from embedding_finetune.files import UserError
from embedding_finetune.profiles import ROOT
from embedding_finetune.settings import Settings, path_of


def missing_hint(settings: Settings) -> str:
    """Clause for messages about missing data, models or results; "" if nothing is known.

    It names a DATASET that does not exist, or else the first other profile with results in a folder of its own.
    """
    if missing := missing_file(settings.dataset):
        return f"; DATASET={missing}"
    for path in sorted((ROOT / "profiles").glob("*.env")):
        try:
            other = Settings.load(path.stem)
        except UserError:  # such as laptop without DATASET; a hint must not replace the error that it is added to
            continue
        if other.output_dir != settings.output_dir and any(other.paths.results.glob("*.json")):
            return f"; profile {other.profile} has results: set PROFILE={other.profile} to use them"
    return ""


def missing_file(name: str) -> str:
    """Clause on the first file of a dataset's name that does not exist, with similar names in its folder.

    "" if all exist, or if the name is not that of a file: it has no extension, or is NAMESPACE/NAME of the Hub.
    """
    for part in name.split(os.pathsep):
        try:
            path = path_of(part)
            has_folder = path.parent.is_dir()
            on_hub = part.count("/") == 1 and not has_folder
            if os.path.lexists(path) or not path.suffix or glob.has_magic(part) or on_hub:
                continue
            similar = get_close_matches(path.name, sorted(os.listdir(path.parent)), cutoff=0.7) if has_folder else []
        except (OSError, ValueError, RuntimeError):  # not a valid path
            continue
        meant = ", ".join(str(Path(part).with_name(other)) for other in similar)
        return f"{part} does not exist: " + (f"did you mean {meant}?" if meant else "name a file, a folder, or a "
                                             "dataset of the Hub")
    return ""
