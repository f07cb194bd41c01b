"""Sources of the settings' values: the environment, and a profile, `profiles/PROFILE.env`.

Both accept the old name of a setting (see deprecation).
"""

import os
import shlex
from pathlib import Path

from embedding_finetune.deprecation import SETTINGS, rename_settings
from embedding_finetune.files import UserError, one_letter_off, read_lines

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("PROFILE", "OVERWRITE")  # variables that are not in the table of settings


def from_environment(known):
    """NAME -> text of the settings in the environment; `known` are the names of all settings.

    Raises UserError for a variable whose name is one letter away from that of a setting.
    """
    for name in os.environ:
        if name not in SETTINGS and (meant := one_letter_off(name, [*known, *OTHERS])):
            raise UserError(f"{name} is not a setting: did you mean {meant}? Unset {name} if another program needs it")
    given = {name: value for name, value in os.environ.items() if name in known or name in SETTINGS}
    return rename_settings(given, "environment")


def from_profile(profile, known):
    """NAME -> text of the settings in a profile; raises UserError when it is missing, or a line or a name is wrong."""
    place, path = f"profiles/{profile}.env", ROOT / "profiles" / f"{profile}.env"
    if not path.is_file():
        profiles = sorted(file.stem for file in path.parent.glob("*.env"))
        raise UserError(f"there is no profile {profile!r}: PROFILE must be one of {', '.join(profiles)}")
    values = {}
    for number, line in read_lines(path, "whoever made this profile"):
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
