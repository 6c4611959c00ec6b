# setup makes .venv with everything; the others call it when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo demo-tags serve test soak lint docs bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is older than 3.11: name one that is not, as in make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: setup
	$(BIN)/python jobs/classify_corpus.py --config examples/spam/job.yaml
	$(BIN)/python examples/spam/accuracy.py out/spam

demo-tags: setup
	$(BIN)/python jobs/tag_corpus.py --config examples/brown/job.yaml
	$(BIN)/python examples/brown/accuracy.py out/brown

# The shipped checkpoints at http://127.0.0.1:8000 until Ctrl-C.
serve: setup
	$(BIN)/python jobs/serve_online.py --head spam=examples/spam/checkpoint --head pos=examples/brown/pos \
	    --embed vectors=examples/brown/pos

test: setup
	$(BIN)/python -m pytest

# For every night: the slow tests, the service on both of Serve's paths under 2,000 mixed requests, then hours of trouble in
# minutes: kills, spoilt storage and broken input (KILLS=50), and hostile files (MINUTES=5).
soak: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,soak]'
	$(BIN)/python -m pytest -m slow
	CONVBERT_MIXED_REQUESTS=2000 $(BIN)/python -m pytest tests/pipelines/test_serving.py -k mixed_requests
	RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1 CONVBERT_MIXED_REQUESTS=2000 \
	    $(BIN)/python -m pytest tests/pipelines/test_serving.py
	$(BIN)/python -m tests.soak.campaign --kills $(or $(KILLS),50)
	$(BIN)/python -m tests.soak.campaign --kills 12 --texts 150 --partition-by spam.label
	$(BIN)/python -m tests.fuzz.campaign --minutes $(or $(MINUTES),5)
	for target in config tokenizer_config index tf1 jsonl; do \
	    $(BIN)/python -m tests.fuzz.guided --target $$target --seconds 60 || exit 1; done

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The pages of docs/ as a site in build/site; broken links are errors.
docs: setup
	$(BIN)/python -m mkdocs build

# Goals and what this machine reaches, side by side; SAVE=1 keeps the table in benchmarks/results/.
bench: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench]'
	$(BIN)/python -m benchmarks.table $(if $(SAVE),--save)

clean:
	rm -rf $(VENV) out build *.egg-info
