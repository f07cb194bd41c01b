"""Hints for error messages about missing data and results."""

from embedding_finetune.files import UserError
from embedding_finetune.profiles import ROOT
from embedding_finetune.settings import Settings


def other_profile_hint(settings: Settings) -> str:
    """Clause that names the first other profile with results in a folder of its own; "" if there is none."""
    for path in sorted((ROOT / "profiles").glob("*.env")):
        try:
            other = Settings.load(path.stem)
        except UserError:  # such as laptop without DATASET; a hint must not replace the error that it is added to
            continue
        if other.output_dir != settings.output_dir and any(other.paths.results.glob("*.json")):
            return f"; profile {other.profile} has results: set PROFILE={other.profile} to use them"
    return ""
