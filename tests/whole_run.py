"""Notebooks and `python -m embedding_finetune run` in one process, which imports the libraries once instead of for each
notebook and each training. What changes the package for that runs in a process of its own (see forked.py).
"""

import os
import sys
import traceback
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_output

from embedding_finetune import pipeline
from embedding_finetune.files import run_command_line
from embedding_finetune.settings import Settings
from embedding_finetune.training.train import finetune


class Client:
    """Executes a notebook as nbclient's NotebookClient does, but in this process."""

    def __init__(self, notebook, *, on_cell_execute, resources, **_):
        self.notebook, self.announce, self.folder = notebook, on_cell_execute, resources["metadata"]["path"]

    def execute(self, **_):
        os.chdir(self.folder)
        shell = InteractiveShell.instance()
        shell.reset()
        for index, cell in enumerate(self.notebook.cells):
            if cell.cell_type == "code":
                self.announce(cell=cell, cell_index=index)
                with capture_output() as captured:
                    error = shell.run_cell(cell.source).error_in_exec
                cell.outputs = [new_output("stream", name=name, text=text) for name in ("stdout", "stderr")
                                if (text := getattr(captured, name))]
                cell.outputs += [new_output("display_data", data=shown.data) for shown in captured.outputs]
                if error:
                    text = "".join(traceback.format_exception(error))
                    raise CellExecutionError(text, type(error).__name__, str(error))


def run_script(settings, script, label):
    folder, arguments = finetune(settings, label, one_process=True), sys.argv[:1]
    print(f"finished: {folder}", flush=True)
    sys.argv = arguments


def experiment():
    """The whole run."""
    pipeline.NotebookClient, pipeline.run_script = Client, run_script
    run_command_line(lambda: pipeline.run_pipeline(Settings.load()))


def notebook(path, folder):
    """One notebook, as run_notebook executes it."""
    pipeline.NotebookClient = Client
    run_command_line(lambda: pipeline.run_notebook(Path(path), Path(folder)))


if __name__ == "__main__":  # a process that has no network is one of its own
    experiment()
