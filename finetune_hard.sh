#!/usr/bin/env bash
# Fine-tune BASE_MODEL with mined hard negatives into OUTPUT_DIR/hard; the negatives are mined first if needed.
#
#     nohup bash finetune_hard.sh > finetune_hard.log 2>&1 &
#     tail -f finetune_hard.log
#
# `bash finetune_hard.sh LABEL` trains any recipe of profiles/recipes.toml, such as hard_kd (distillation).
# `bash finetune_hard.sh --dry-run` shows the torchrun commands, ours and FlagEmbedding's, and what they do.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
PATH="$PWD/.venv/bin:$PATH" exec python3 -m embedding_finetune train --default hard "$@"
