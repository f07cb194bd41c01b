"""Old name of `python -m embedding_finetune export`; removed in 2.0."""

from embedding_finetune.deprecation import run_renamed
from embedding_finetune.files import run_command_line

if __name__ == "__main__":
    run_command_line(lambda: run_renamed("smaller", "export"))
