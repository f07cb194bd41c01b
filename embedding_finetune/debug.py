"""One training in one process, for a debugger: finetune.sh's own flags, without torchrun. See docs/debugging.md.

    python -m pdb -m embedding_finetune.debug LABEL

Without `-m pdb` it stops at each `breakpoint()` only.
"""

import os
import runpy
import subprocess
import sys

from embedding_finetune.experiment import ROOT
from embedding_finetune.files import ExperimentError, run_command_line


def training_command(label):
    """The module that finetune.sh would start for this label, and its flags.

    Raises ExperimentError when finetune.sh refuses; its own message is on standard error then.
    """
    script = subprocess.run(["bash", ROOT / "embedding_finetune" / "finetune.sh", label], text=True, stdout=subprocess.PIPE,
                            env={**os.environ, "DEBUG": "1", "PYTHONPATH": str(ROOT)}, check=False)
    if script.returncode:
        raise ExperimentError(f"finetune.sh {label} did not get as far as the training, its own message is above")
    _, module, *flags = script.stdout.split("\0")
    return module, flags


def main():
    if len(sys.argv) != 2:
        raise ExperimentError("give one label, e.g. `python -m pdb -m embedding_finetune.debug neg10`")
    module, flags = training_command(sys.argv[1])
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several GPUs one process would split each batch over them
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_command_line(main)
