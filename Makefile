# make demo    the whole experiment in about ten minutes, without a GPU and without a model hub
# make test    the tests
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export TOKENIZERS_PARALLELISM := false
export DISABLE_SAFETENSORS_CONVERSION := 1

.PHONY: help install demo run test bench-train clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

install: .venv/installed  ## make .venv and install the pinned packages into it

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: install  ## the whole experiment on the embedded default: PROFILE=demo make run
	PROFILE=demo $(MAKE) --no-print-directory run

run: install  ## the whole experiment under PROFILE (default msmarco): data, fine-tunings, evaluations, comparison
	python -m embedding_finetune.run

test: install  ## the tests
	python -m pytest tests

bench-train: install  ## training speed and memory, side by side with FlagEmbedding and sentence-transformers (PAIRS=file.jsonl)
	python benchmarks/bench_train.py

clean:  ## remove caches and logs; models, data, results and .venv stay
	rm -rf .pytest_cache finetune_*.log
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
