#!/usr/bin/env bash
# Fine-tune BASE_MODEL with 10 random negatives a query (training_neg_10.json) into OUTPUT_DIR/neg10.
#
#     nohup bash finetune_neg10.sh > finetune_neg10.log 2>&1 &
#     tail -f finetune_neg10.log
#
# The settings are in profiles/ (PROFILE=demo chooses the small one), the flags in embedding_finetune/finetune.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/embedding_finetune/finetune.sh" neg10
