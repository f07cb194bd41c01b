#!/usr/bin/env bash
# Fine-tune RERANKER, or BASE_MODEL with a new head, into OUTPUT_DIR/reranker: a second look at the best hits, which reads
# query and passage together. Its hard negatives are mined first, if that has not been done.
#
#     nohup bash finetune_reranker.sh > finetune_reranker.log 2>&1 &
#     tail -f finetune_reranker.log
#
# RERANKERS="rerank_reranker_on_reference" has `make run` measure it.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
PATH="$PWD/.venv/bin:$PATH" exec python3 -m embedding_finetune train "${@:-reranker}"
