# Every target makes the virtual environment that it needs. Another Python: make PYTHON=python3.12 test
PYTHON ?= python3
# An interpreter with PyTorch, for `make bench-gpu`.
TORCH_PYTHON ?= python3
MINUTES ?= 10
# How many files of tests run at a time. Those of `make test-faults` measure time and run one after the other.
JOBS ?= 2
# How many random networks `make fuzz` builds.
EXAMPLES ?= 2000
# How many damaged inputs `make fuzz` gives to each parser.
INPUTS ?= 100000
EXTRAS := cli,builder,server,insightface,openvino,s3,report,bulk
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
# NVIDIA's images have Python 3.12.
LOCK   := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.12 --no-annotate pyproject.toml deploy/cuda.in

.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults test-torch test-ray test-real test-lowest test-gpu test-kserve fuzz soak lint format type check ci bench bench-gpu report lock package clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## Make the virtual environment .venv with everything in it

# Built anew whenever pyproject.toml changes; pip before 25.1 does not know dependency groups.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]' --group dev
	@touch $(READY)

demo: $(READY) ## Build, serve and call a model on a real photograph; ONNX=FILE takes your own network
	$(BIN)/python examples/demo.py $(if $(ONNX),--onnx-path '$(ONNX)')

test: $(READY) ## Run the tests, against a real Triton server, in JOBS (2) processes
	$(BIN)/pytest -m 'not faults and not ray and not real' --numprocesses $(JOBS) --dist loadfile

test-faults: $(READY) ## Run the tests of servers, models and networks that fail, end or are interrupted in the middle (7 minutes)
	$(BIN)/pytest -m faults

test-torch: $(READY) ## Install PyTorch and compare the network with a plain PyTorch one
	$(BIN)/pip install --quiet 'torch==2.13.0' 'onnxscript>=0.5'
	$(BIN)/pytest tests/builder/source/test_iresnet_torch.py tests/builder/source/test_exports_torch.py \
		tests/builder/source/test_checkpoint.py

# The constraints of the other extras hold, so that nothing of what is installed changes.
test-ray: $(READY) ## Install Ray, Spark and vector databases, embed on clusters and kill nodes (4 minutes)
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS),ray]' pyspark \
		faiss-cpu pylance qdrant-client pymilvus milvus-lite pgvector 'psycopg[binary]'
	$(BIN)/pytest -m ray

test-real: $(READY) ## Fetch two small trained networks and serve them; ARCFACE_TEST_FACES=DIR has crops, DIR/p01/*.png, ...
	$(BIN)/pytest -m real -rs tests/real

test-kserve: ## Let KServe's own SDK read deploy/kserve, in .venv-kserve (2 minutes)
	$(PYTHON) -m venv $(VENV)-kserve
	$(VENV)-kserve/bin/pip install --quiet kserve 'kubernetes<34' kubernetes-validate pytest pytest-timeout
	$(VENV)-kserve/bin/pytest -o filterwarnings= tests/deploy/test_kubernetes.py -k kserve

fuzz: $(READY) ## Build EXAMPLES (2000) random networks, and give each parser INPUTS (100000) damaged inputs (an hour of CPU)
	FUZZ_EXAMPLES=$(EXAMPLES) FUZZ_INPUTS=$(INPUTS) $(BIN)/pytest tests/fuzz --numprocesses $(JOBS)

test-lowest: ## Run the tests with the lowest versions that pyproject.toml allows, in .venv-lowest (10 minutes)
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct --editable '.[$(EXTRAS)]'
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest --group test
	$(VENV)-lowest/bin/pytest -m 'not faults and not ray and not real' --numprocesses $(JOBS) --dist loadfile

test-gpu: $(READY) ## Run the tests that need a GPU and TensorRT (8 minutes; `make test` skips them)
	$(BIN)/pytest -m gpu tests/gpu

soak: $(READY) ## Run load with random faults and releases for MINUTES (10) on real servers; exit 1 when anything is wrong
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES)

lint: $(READY) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## Check types
	$(BIN)/mypy

check: lint type test ## Style, types and tests, before every commit

# PyTorch is here and not in `test`: it compares the network with a plain PyTorch one.
ci: test test-faults test-torch lint type ## All that a change must pass (15 minutes)

bench: $(READY) ## Measure the ways to embed on this CPU, growth and outages (about 30 minutes); then `make report`
	$(BIN)/python benchmarks/cpu.py --depth r50
	$(BIN)/python benchmarks/cpu.py --depth r100
	$(BIN)/python benchmarks/float32.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/fallback.py
	$(BIN)/python benchmarks/bulk.py
	$(BIN)/python benchmarks/pod.py

bench-gpu: $(READY) ## Measure TensorRT plans on this GPU (about an hour; benchmarks/gpu.py runs it in pieces)
	$(BIN)/python benchmarks/gpu.py --torch-python $(TORCH_PYTHON) --output docs/benchmarks

report: $(READY) ## Write docs/benchmarks/index.html and the tables in README.md and docs from docs/benchmarks/*.json
	$(BIN)/python benchmarks/report.py

lock: $(READY) ## Choose the versions of the images' packages anew: deploy/*-requirements.txt
	$(BIN)/pip install --quiet uv
	$(LOCK) --extra builder --extra cli --extra cudnn --extra s3 --output-file deploy/builder-requirements.txt
	$(LOCK) --extra cudnn --no-emit-package numpy --output-file deploy/triton-requirements.txt

package: $(READY) ## Build the wheel and the source distribution into dist/
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

clean: ## Remove the virtual environment and everything built
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-kserve dist build demo_output .mypy_cache .pytest_cache .ruff_cache .hypothesis
