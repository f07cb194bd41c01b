#!/usr/bin/env bash
# Fine-tune BASE_MODEL on the training file of one label: the flags of every fine-tuning are in this file.
#
#     bash embedding_finetune/finetune.sh LABEL        neg10, neg50, hard, hard_kd .., or e.g. neg10_seed43 for the same with another seed
#
# Settings come from profiles/$PROFILE.env and the environment. The model appears in OUTPUT_DIR/LABEL when it is complete; until then
# OUTPUT_DIR/LABEL.partial holds its checkpoints, and the same command continues from the last one. OVERWRITE=1 moves a finished
# model aside. GPUS=2 trains on two. TRAINER=flagembedding runs FlagEmbedding's own trainer, which cannot be continued.
set -euo pipefail

# In a function, so that bash has read all of it before it starts: an update of this file must not disturb a training that runs.
main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    local label=$1

    settings=$(python -m embedding_finetune.experiment --export)
    eval "$settings"
    echo "fine-tuning $label: profile $PROFILE, data $DATA_DIR, output $OUTPUT_DIR; checking the training file and the base model"
    [ -t 2 ] || export TQDM_MININTERVAL=30                # in a log, a bar may speak twice a minute
    prepared=$(python -m embedding_finetune.finetune prepare "$label")
    { read -r base_model; read -r precision; read -r unfinished; read -r training_file; read -r seed; } <<< "$prepared"
    if [ -e "$unfinished/model.safetensors" ]; then     # stopped between the training's end and the last line of this script
        exec python -m embedding_finetune.finetune finish "$label"
    fi

    flags=(
        # model
        --model_name_or_path "$base_model"
        --sentence_pooling_method "$BASE_POOLING"
        --normalize_embeddings True
        # data
        --train_data "$training_file"
        --train_group_size "$TRAIN_GROUP_SIZE"            # 1 positive + the rest negatives, sampled anew at every step
        --query_max_len "$QUERY_MAX_LEN"
        --passage_max_len "$PASSAGE_MAX_LEN"
        --query_instruction_for_retrieval "$QUERY_INSTRUCTION"
        --query_instruction_format '{}{}'
        --cache_path "$OUTPUT_DIR/.cache"
        # objective
        --temperature "$TEMPERATURE"
        # optimisation
        --per_device_train_batch_size "$BATCH_SIZE"
        --dataloader_drop_last True
        --learning_rate "$LEARNING_RATE"
        --num_train_epochs "$EPOCHS"
        --warmup_steps "$WARMUP_RATIO"                    # below 1 it is a share of all steps
        --seed "$seed"
        $precision                                        # some words: --use_cpu True, --bf16 True ..
        # output
        --output_dir "$unfinished"
        --save_strategy steps
        --save_steps 0.2                                  # a share of all steps: five checkpoints to continue from
        --logging_steps "$LOGGING_STEPS"
        --report_to none
    )
    if [[ $label == *_kd* ]]; then
        flags+=(--knowledge_distillation True --kd_loss_type kl_div)   # learn the teacher's scores, too
    fi
    if [ "${GPUS:-1}" -gt 1 ]; then
        flags+=(--negatives_cross_device True)            # every query meets the passages of all GPUs
    fi

    case "${TRAINER:-embedding_finetune}" in
        embedding_finetune)
            module=embedding_finetune.train
            flags+=(
                --dev_data "$DATA_DIR/dev_dataset.json"
                --dev_corpus "$DATA_DIR/corpus.jsonl"
                --dev_corpus_size "$DEV_CORPUS_SIZE"
                --dev_steps "$DEV_STEPS"                  # below 1 it is a share of all steps
                --grad_cache_chunk "$GRAD_CACHE_CHUNK"
            ) ;;
        flagembedding)
            module=FlagEmbedding.finetune.embedder.encoder_only.base
            flags+=(--save_strategy no --disable_tqdm True) ;;   # the later of two equal flags counts
        *)
            echo "error: TRAINER=$TRAINER is unknown: embedding_finetune or flagembedding" >&2
            exit 1 ;;
    esac

    # For debug.py, which runs the training in one process: module and flags, each after a NUL.
    if [ -n "${DEBUG:-}" ]; then
        printf '\0%s' "$module" "${flags[@]}"
        exit
    fi

    python -m embedding_finetune.launch --standalone --nproc_per_node "${GPUS:-1}" -m "$module" "${flags[@]}"   # torchrun

    if [ "$module" != embedding_finetune.train ]; then
        python -m embedding_finetune.export "$unfinished" --pooling "$BASE_POOLING" --query_instruction "$QUERY_INSTRUCTION" \
            --query_max_length "$QUERY_MAX_LEN" --passage_max_length "$PASSAGE_MAX_LEN"
    fi
    python -m embedding_finetune.finetune finish "$label"
}

main "$@"; exit
