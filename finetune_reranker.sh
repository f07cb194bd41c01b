#!/usr/bin/env bash
# Fine-tune RERANKER_MODEL, or BASE_MODEL with a new head, into OUTPUT_DIR/reranker: a cross-encoder that reranks the best
# hits. Its hard negatives are mined first if needed.
#
#     nohup bash finetune_reranker.sh > finetune_reranker.log 2>&1 &
#     tail -f finetune_reranker.log
#
# RERANKERS="rerank_reranker_on_reference" makes `make run` evaluate it.
# `bash finetune_reranker.sh --dry-run` shows the torchrun commands, ours and FlagEmbedding's, and what they do.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
PATH="$PWD/.venv/bin:$PATH" exec python3 -m embedding_finetune train --default reranker "$@"
