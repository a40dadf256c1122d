# Everything runs from a bare clone with Python >= 3.11: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test coverage lint test-slow test-core bench-builder bench-openvino bench-memory bench-quality bench-networks bench-fusions bench-prune bench-channels bench-gate bench-gate-quality docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(STAMP)  ## compile the embedded checkpoint to int8 and let it tell a story
	rm -rf out/demo
	$(BIN)/edgec build examples/storyteller/checkpoint --target cpu --profile int8 \
	    --eval-text examples/storyteller/data/heldout.txt --out out/demo
	$(BIN)/edgec run out/demo --prompt 'Once' --max-new-tokens 120

test: lint  ## lint, types, tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto  # a process for each core: threads of each would only wait

coverage: $(STAMP)  ## the same tests, and which lines they run: a third slower
	$(BIN)/pytest --numprocesses auto --cov --cov-report=term --cov-report=xml

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(STAMP)  ## large models and fault campaigns
	$(BIN)/pytest -m slow

test-core:  ## the core alone, in an environment of its own: size, imports, commands
	bash tests/core_install.sh $(PYTHON) $(if $(wildcard out/demo),$(abspath out/demo))

bench-builder:  ## build time, memory and speed beside onnxruntime-genai's model builder
	bash bench/builder/run.sh $(PYTHON)

bench-openvino:  ## build time, memory, speed and perplexity beside optimum-intel; TEXT is a file to measure on
	bash bench/openvino/run.sh $(PYTHON) $(TEXT)

bench-memory: $(STAMP)  ## peak memory of building a random 1.5 B-parameter model
	$(BIN)/python bench/memory/run.py

bench-quality:  ## quality of the quantized weights beside six peers; TEXT is a file to calibrate and measure on
	bash bench/quality/run.sh $(PYTHON) $(if $(TEXT),--text $(TEXT))

bench-networks:  ## int8 of three real networks beside onnxruntime's quantize_static and NNCF; TEXT is a file to measure on
	bash bench/networks/run.sh $(PYTHON) $(if $(TEXT),--text $(TEXT))

bench-fusions: $(STAMP)  ## which fusions pay on which runtime
	$(BIN)/python bench/fusions.py

bench-prune:  ## what pruning costs and gains, beside llm-compressor; TEXT is a file to calibrate zeros and measure them on
	bash bench/prune/run.sh $(PYTHON) $(if $(TEXT),--text $(TEXT))

bench-channels:  ## what a network gains and loses with its channels
	bash bench/channels/run.sh $(PYTHON)

bench-gate:  ## how often the gate errs; goes on where it stopped. MINUTES for each of quiet and busy
	bash bench/gate/run.sh $(PYTHON) $(MINUTES)

bench-gate-quality: $(STAMP)  ## how often the gate finds a known loss of SmolLM2's quality; hours
	$(BIN)/python bench/gate/quality.py "$$($(BIN)/python bench/smollm2.py)"

docs: $(STAMP)  ## regenerate the tables in docs/
	$(BIN)/python -m edgec.spec.table > docs/targets.md
	$(BIN)/python -m edgec.gate.schema > docs/gate-result.schema.json

clean:
	rm -rf $(VENV) out bench/.work
