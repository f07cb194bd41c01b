# make demo    the whole experiment in some minutes, without a GPU and without the Hugging Face Hub
# make test    the tests, but for the long ones: make test-long
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)

.PHONY: help install demo run curve notebooks test test-long lint format baseline baseline-check faults soak clean bench claims \
	bench-train bench-encode

# uv installs in a third of the time of pip, with the indexes and certificates that pip is set to use.
LAYERS = $(wildcard requirements/*.txt)
UV = UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$PIP_INDEX_URL}" \
	SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}" .venv/bin/uv pip install --quiet --python .venv/bin/python
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

install: .venv/installed  ## make .venv and install the pinned packages of requirements.txt into it

.venv/installed: requirements.txt .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) uv==0.13.9 || true
	$(UV) -r requirements.txt -c .ci/constraints.txt || $(PIP) -r requirements.txt -c .ci/constraints.txt
	touch $@

.venv/complete: .venv/installed $(LAYERS)
	$(UV) $(LAYERS:%=-r %) -c .ci/constraints.txt || $(PIP) $(LAYERS:%=-r %) -c .ci/constraints.txt
	touch $@

# These do not read .env, whose settings are the user's.
demo test test-long notebooks baseline baseline-check faults soak bench claims: export ENV_FILE = none
bench-train bench-encode: export ENV_FILE = none

demo: install  ## the whole experiment on the embedded default: PROFILE=demo make run
	PROFILE=demo $(MAKE) --no-print-directory run

run: install  ## the whole experiment under PROFILE (default msmarco)
	python -m embedding_finetune run

CURVE = neg10_eighth neg10_quarter neg10_half neg10_half_long neg10_merged

curve: install  ## is it worth it? the run with the learning curve of neg10 and merged weights; keeps what is trained
	RECIPES="$(strip $(RECIPES) $(CURVE))" python -m embedding_finetune run

notebooks: demo  ## run the demo and put its outputs into the notebooks
	PROFILE=demo python -m embedding_finetune run --notebooks

test: .venv/complete  ## the tests, but for the long ones
	python -m pytest tests -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-long: .venv/complete  ## the long ones: a Ray cluster, two nodes, a short soak, what libraries send; three minutes
	python -m pytest tests -m long

lint: .venv/complete  ## ruff and pyright; make format sorts imports and repairs what ruff can
	ruff check .
	pyright

format: .venv/complete
	ruff check . --fix

baseline: .venv/complete  ## keep the demo's figures, float32 on one thread, to compare later code with
	python tests/baseline.py store

baseline-check: .venv/complete  ## run the demo again and list what differs from the baseline
	python tests/baseline.py check

faults: .venv/complete  ## break it on purpose: kills, full disks, damaged files, odd input; an hour, tests/faults/RESULTS.md
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests python -m faults --processes $$(nproc) --plant all --page tests/faults/RESULTS.md

soak: .venv/complete  ## the server for half an hour under load and faults, every answer checked; tests/faults/RESULTS.md
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests python -m faults soak --page tests/faults/RESULTS.md

bench: .venv/complete  ## measure NAME (train, encode, search, ..) and keep its figures; without NAME all of them, for hours
	python benchmarks/bench.py $(NAME)

claims: .venv/complete  ## measure the public results again, or CLAIM alone, from the data in CLAIMS_DATA; docs/results.md
	python benchmarks/claims.py $(CLAIM)
	python docs/result_tables.py

bench-train bench-encode: bench-%: .venv/complete
	python benchmarks/bench_$*.py

clean:  ## remove caches and logs; models, data, results and .venv stay
	rm -rf .pytest_cache finetune_*.log
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
