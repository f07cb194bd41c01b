"""Sources of the settings' values: the environment, the file `.env`, and a profile, `profiles/PROFILE.env`.

All of them accept the old name of a setting (see deprecation).
"""

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from embedding_finetune.deprecation import REMOVED_SETTINGS, SETTINGS, rename_settings
from embedding_finetune.files import UserError, one_letter_off, read_lines

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("PROFILE", "OVERWRITE", "ENV_FILE")  # variables that are not in the table of settings


def from_environment(known: Collection[str]) -> dict[str, str]:
    """NAME -> text of the settings in the environment; `known` are the names of all settings.

    Raises UserError for a variable whose name is one letter away from that of a setting.
    """
    former = SETTINGS.keys() | REMOVED_SETTINGS
    for name in os.environ:
        if name not in former and (meant := one_letter_off(name, [*known, *OTHERS])):
            raise UserError(f"{name} is not a setting: did you mean {meant}? Unset {name} if another program needs it")
    given = {name: value for name, value in os.environ.items() if name in known or name in former}
    return rename_settings(given, "environment")


def from_env_file(known: Collection[str]) -> dict[str, str]:
    """NAME -> text of the settings in ENV_FILE, and of PROFILE; {} if there is no such file or ENV_FILE is `none`.

    ENV_FILE is an environment variable, by default `.env`. Raises UserError when a line or a name is wrong.
    """
    name = os.environ.get("ENV_FILE") or ".env"
    path = ROOT / Path(name).expanduser()
    if name == "none" or name == ".env" and not path.is_file():
        return {}
    if not path.is_file():
        raise UserError(f"ENV_FILE={name} does not exist: name a file of settings, or none")
    return _read(path, name, [*known, "PROFILE"])


def from_profile(profile: str, known: Collection[str]) -> dict[str, str]:
    """NAME -> text of the settings in a profile; raises UserError when it is missing, or a line or a name is wrong."""
    path = ROOT / "profiles" / f"{profile}.env"
    if not path.is_file():
        profiles = sorted(file.stem for file in path.parent.glob("*.env"))
        raise UserError(f"there is no profile {profile!r}: PROFILE must be one of {', '.join(profiles)}")
    return _read(path, f"profiles/{profile}.env", known)


def _read(path, place, known):
    """The settings in a file of lines NAME=value; `place` is its name in messages."""
    values = {}
    for number, line in read_lines(path, "you"):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = ["", ""]
        name, equals, value = words[0].partition("=") if words else ("", "", "")
        if words and (len(words) > 1 or not equals or name in values):
            raise UserError(f"{place}, line {number}: expected one NAME=value, each name once (quote spaces)")
        values |= {name: value} if words else {}
    values = rename_settings(values, place)
    for name in values:
        if name not in known:
            meant = one_letter_off(name, known)
            raise UserError(f"{place}: unknown setting {name}; "
                            + (f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"))
    return values
