#!/usr/bin/env bash
# Fine-tune BASE_MODEL with mined hard negatives into OUTPUT_DIR/hard; they are mined first, if that has not been done.
#
#     nohup bash finetune_hard.sh > finetune_hard.log 2>&1 &
#     tail -f finetune_hard.log
#
# `bash finetune_hard.sh hard_kd` learns from a teacher's scores, too; `hard_round2` and `hard_kd_round2` mine with the model of the first
# round. The settings are in profiles/ (HARD_.. and TEACHER..), the flags in embedding_finetune/finetune.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/embedding_finetune/finetune.sh" "${1:-hard}"
