"""`python -m embedding_finetune COMMAND`: see cli."""

from embedding_finetune.cli import main

if __name__ == "__main__":
    main()
