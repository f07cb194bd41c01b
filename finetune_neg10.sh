#!/usr/bin/env bash
# Fine-tune BASE_MODEL with 10 random negatives per query (training_neg_10.arrow) into OUTPUT_DIR/neg10.
#
#     nohup bash finetune_neg10.sh > finetune_neg10.log 2>&1 &
#     tail -f finetune_neg10.log
#
# Settings are in profiles/ (PROFILE=demo is a small one), recipes in profiles/recipes.toml.
# `bash finetune_neg10.sh --dry-run` shows the torchrun commands, ours and FlagEmbedding's, and what they do.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
PATH="$PWD/.venv/bin:$PATH" exec python3 -m embedding_finetune train --default neg10 "$@"
