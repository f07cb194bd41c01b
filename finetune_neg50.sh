#!/usr/bin/env bash
# Fine-tune BASE_MODEL with 50 random negatives a query (training_neg_50.json) into OUTPUT_DIR/neg50.
#
#     nohup bash finetune_neg50.sh > finetune_neg50.log 2>&1 &
#     tail -f finetune_neg50.log
#
# The settings are in profiles/ (PROFILE=demo chooses the small one), the flags in embedding_finetune/finetune.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/embedding_finetune/finetune.sh" neg50
