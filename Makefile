# make demo    the whole experiment in some minutes, without a GPU and without the Hugging Face Hub
# make test    the tests, but for the long ones: make test-long
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)

.PHONY: help install demo run curve notebooks test test-long baseline baseline-check faults soak clean clean-cache bench \
	bench-negatives bench-rows bench-train bench-encode bench-search bench-mining bench-index bench-million bench-second bench-serve \
	bench-gpu

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

install: .venv/installed  ## make .venv and install the pinned packages into it

.venv/installed: requirements.txt .ci/constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c .ci/constraints.txt
	touch $@

# These do not read .env, whose settings are the user's.
demo test test-long notebooks baseline baseline-check faults soak bench: export ENV_FILE = none
bench-%: export ENV_FILE = none

demo: install  ## the whole experiment on the embedded default: PROFILE=demo make run
	PROFILE=demo $(MAKE) --no-print-directory run

run: install  ## the whole experiment under PROFILE (default msmarco)
	python -m embedding_finetune run

CURVE = neg10_eighth neg10_quarter neg10_half neg10_half_long neg10_merged

curve: install  ## is it worth it? the run with the learning curve of neg10 and merged weights; keeps what is trained
	RECIPES="$(strip $(RECIPES) $(CURVE))" python -m embedding_finetune run

notebooks: demo  ## run the demo and put its outputs into the notebooks
	PROFILE=demo python -m embedding_finetune run --notebooks

test: install  ## the tests, but for the long ones
	python -m pytest tests -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-long: install  ## the long ones: a Ray cluster, two nodes, a short soak, what libraries send; three minutes
	python -m pytest tests -m long

baseline: install  ## keep the demo's figures, float32 on one thread, to compare later code with
	python tests/baseline.py store

baseline-check: install  ## run the demo again and list what differs from the baseline
	python tests/baseline.py check

faults: install  ## break it on purpose: kills, full disks, damaged files, odd input; an hour, docs/reliability.md
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests python -m faults --processes $$(nproc) --plant all --page docs/reliability.md

soak: install  ## the server for half an hour under load and faults, every answer checked; docs/reliability.md
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests python -m faults soak --page docs/reliability.md

bench-train: install  ## training speed and memory compared with FlagEmbedding and sentence-transformers (PAIRS=file.jsonl)
	python benchmarks/bench_train.py

bench-encode: install  ## encoding speed compared with FlagEmbedding and sentence-transformers (PAIRS=file.jsonl)
	python benchmarks/bench_encode.py

bench-search: install  ## search in 1 million vectors, side by side with the bare product of matrices
	python benchmarks/bench_search.py

bench-mining: install  ## mining's search in 1 million mapped vectors, block by block
	python benchmarks/bench_mining.py

bench: install  ## all benchmarks into benchmarks/results.json and results.md; some hours on two idle cores
	python benchmarks/bench.py

bench-negatives: install  ## random negatives compared with the tutorial's loop
	python benchmarks/bench_negatives.py

bench-rows: install  ## half a million training rows by id: writing, size and opening, compared with JSON lines
	python benchmarks/bench_rows.py

bench-index: install  ## approximate search in 1 million vectors compared with exact search, and with its extrapolation
	python benchmarks/bench_index.py

bench-million: install  ## a million passages through every step, killed ten times on the way (PAIRS=file.jsonl)
	python benchmarks/bench_million.py

bench-second: install  ## 30 passages of a query by late interaction and by a cross-encoder, compared with sentence-transformers
	python benchmarks/bench_second.py

bench-gpu: install  ## a GPU: training at the tutorial's settings, memory, GradCache and encoding
	python benchmarks/bench.py gpu

bench-serve: install  ## a cold search, and the server with 32 clients, side by side with single encode calls (PROFILE)
	python benchmarks/bench_serve.py

clean-cache: install  ## remove the stored vectors of PROFILE; the next evaluation encodes all texts anew
	folder=$$(python -c 'from embedding_finetune.settings import Settings; print(Settings.load().output_dir)') \
		&& rm -rf "$${folder:?}/cache"

clean:  ## remove caches and logs; models, data, results and .venv stay
	rm -rf .pytest_cache finetune_*.log
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
