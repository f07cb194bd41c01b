#!/usr/bin/env bash
# Fine-tune BASE_MODEL on the training file of one label: the flags of every fine-tuning are in this file.
#
#     bash embedding_finetune/finetune.sh LABEL
#
# Settings come from profiles/$PROFILE.env and the environment. GPUS=2 trains on two. The model appears in OUTPUT_DIR/LABEL
# when it is complete; until then it is OUTPUT_DIR/LABEL.partial. OVERWRITE=1 moves a finished model aside.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
label=$1

settings=$(python -m embedding_finetune.experiment --export)
eval "$settings"
echo "fine-tuning $label: profile $PROFILE, data $DATA_DIR, output $OUTPUT_DIR; checking the training file and the base model"
prepared=$(python -m embedding_finetune.finetune prepare "$label")
{ read -r base_model; read -r precision; } <<< "$prepared"

flags=(
    # model
    --model_name_or_path "$base_model"
    --sentence_pooling_method "$BASE_POOLING"
    --normalize_embeddings True
    # data
    --train_data "$DATA_DIR/training_${label/neg/neg_}.json"
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
    --seed "$SEED"
    $precision True
    # output
    --output_dir "$OUTPUT_DIR/$label.partial"
    --save_strategy no
    --logging_steps "$LOGGING_STEPS"
    --disable_tqdm True
    --report_to none
)

# Without the signals named, torchrun would handle SIGHUP itself and die with its terminal in spite of nohup.
python -m torch.distributed.run --standalone --nproc_per_node "${GPUS:-1}" --signals-to-handle SIGTERM,SIGINT,SIGQUIT \
    -m FlagEmbedding.finetune.embedder.encoder_only.base "${flags[@]}"

python -m embedding_finetune.finetune finish "$label"
