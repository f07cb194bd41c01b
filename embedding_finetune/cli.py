"""The command line: `embedding-finetune COMMAND` or `python -m embedding_finetune COMMAND`.

python -m embedding_finetune             lists the commands
python -m embedding_finetune train hard  is what finetune_hard.sh runs
"""

import importlib
import sys
from difflib import get_close_matches

from embedding_finetune.files import UserError, run_command_line

COMMANDS = {  # name -> (module, function, what it does)
    "init": ("commands", "init", "inspect a dataset and write its settings to .env: init faq.csv"),
    "settings": ("commands", "settings", "show every setting, its value and where it comes from"),
    "run": ("pipeline", "main", "run all notebooks and scripts in order"),
    "mine": ("training.mining", "main", "write the training file of a recipe: mine LABEL"),
    "train": ("training.train", "main", "fine-tune by a recipe: train LABEL"),
    "evaluate": ("evaluation.evaluate", "main", "evaluate a system on dev and test queries: evaluate LABEL"),
    "compare": ("evaluation.tables", "main", "compare all evaluated systems and recommend one"),
    "index": ("serving.index", "main", "build the search index of a system: index LABEL"),
    "search": ("serving.search", "main", "search the corpus: search QUERY"),
    "serve": ("serving.server", "main", "serve search over HTTP, with a web page"),
    "encode": ("models.parallel_encode", "main", "encode corpus and queries with several processes or machines"),
    "export": ("contrib.onnx_openvino", "main", "export a model to ONNX and OpenVINO, also in int8: export LABEL"),
    "publish": ("contrib.publish", "main",
                "prepare a model's folder for the Hugging Face Hub: publish LABEL --to NAME/MODEL"),
    "clean": ("commands", "clean", "show what the experiment takes on disk, or remove parts of it"),
}
REMOVED = {  # name -> what to do in its place
    "choose-index": "set INDEX to flat up to about a million passages, to SQ8 or IVF.. beyond (docs/scale.md); "
                    "`search` reports the recall compared with exact search"}


def run(arguments: list[str]) -> None:
    """Run a command with its arguments (a list of str); raises UserError when it does not exist (any more)."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m embedding_finetune COMMAND ...\n")
        print(*(f"  {command:14} {what}" for command, (*_, what) in COMMANDS.items()), sep="\n")
        print("\n`python -m embedding_finetune COMMAND --help` lists the arguments of a command.")
    elif name in REMOVED:
        raise UserError(f"the command {name} was removed: {REMOVED[name]}")
    elif name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        raise UserError(f"there is no command {name!r}: " + (f"did you mean {close[0]}?" if close else
                                                              f"choose one of {', '.join(COMMANDS)}"))
    else:
        sys.argv = [f"embedding_finetune {name}", *rest]
        module, function, _ = COMMANDS[name]
        getattr(importlib.import_module(f"embedding_finetune.{module}"), function)()


def main() -> None:
    """Run the command line of this process."""
    run_command_line(lambda: run(sys.argv[1:]))
