"""The command line: `python -m embedding_finetune COMMAND` runs one of COMMANDS.

    python -m embedding_finetune             lists the commands
    python -m embedding_finetune train hard  is what finetune_hard.sh runs
"""

import importlib
import sys

from embedding_finetune.files import UserError, run_command_line

COMMANDS = {  # name -> (module with a main(), what it does)
    "settings": ("settings", "show every setting and its value"),
    "train": ("training.train", "fine-tune by a recipe: train LABEL"),
    "encode": ("models.parallel_encode", "encode corpus and queries with several processes or machines"),
    "run": ("pipeline", "run all notebooks and scripts in order"),
    "search": ("serving.search", "search the corpus: search QUERY"),
    "serve": ("serving.server", "serve search over HTTP, with a web page"),
    "export": ("contrib.onnx_openvino", "export a model to ONNX and OpenVINO, also in int8: export LABEL"),
    "publish": ("contrib.publish", "prepare a model's folder for the Hugging Face Hub: publish LABEL --to NAME/MODEL"),
    "choose-index": ("contrib.index_advisor", "compare index types on a sample of the corpus"),
}


def run(arguments):
    """Run a command with its arguments (a list of str); raises UserError when there is no such command."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m embedding_finetune COMMAND ...\n")
        print(*(f"  {command:14} {what}" for command, (_, what) in COMMANDS.items()), sep="\n")
    elif name not in COMMANDS:
        raise UserError(f"there is no command {name!r}: choose one of {', '.join(COMMANDS)}")
    else:
        sys.argv = [f"embedding_finetune {name}", *rest]
        importlib.import_module(f"embedding_finetune.{COMMANDS[name][0]}").main()


def main():
    run_command_line(lambda: run(sys.argv[1:]))
