"""torchrun without its traceback: the worker has said in one line what is wrong, or was killed, which is said here.

    python -m embedding_finetune.launch --standalone --nproc_per_node 2 -m embedding_finetune.train FLAGS

torchrun takes SIGHUP for a reason to end, so that training dies with its terminal in spite of nohup; here it does not.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(["--signals-to-handle", "SIGTERM,SIGINT,SIGQUIT", *sys.argv[1:]])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: training process {rank} was killed by signal {-failure.exitcode}"
                  f"{' (perhaps for want of memory)' if failure.exitcode == -9 else ''}; the same command continues it", file=sys.stderr)
        sys.exit(1)
