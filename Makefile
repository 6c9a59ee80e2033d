# make reports CONFIG=quick DATA=/path/to/data SET="key=value other=value" PROFILE=slurm
CONFIG ?= demo
CORES ?= all
PYTHON ?= python3
PY = .venv/bin/python
# glibc returns large blocks to the system after every layer, and takes them again: keep them (a quarter faster on CPUs)
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 8589934592
export MALLOC_TOP_PAD_ = 268435456
# names and texts are UTF-8, whatever the locale says
export PYTHONUTF8 = 1
PICTURES = demo/index demo/03_herlev_resnet101_grouped-0 demo/04_explainability case/07_own_images
DATASETS = data-herlev data-sipakmed data-mobileodt
.PHONY: help doctor lab reports case score publish $(DATASETS) pdf pictures licences test test-resilience test-slurm bench lint clean lock
.DEFAULT_GOAL := help
# a text as the shell, and within it YAML, reads it: whatever spaces, quotes or colons it has
quoted = '$(subst ','\'',$(1))'
text = $(call quoted,"$(subst ",\",$(subst \,\\,$(1)))")
GIVEN = name=$(call quoted,$(CONFIG)) $(if $(DATA),data_root=$(call text,$(DATA))) $(SET)
# a folder of Snakemake's settings, with the plugin that these need: workflow/profiles/<name>, or a path
FOLDER = $(call quoted,$(if $(findstring /,$(PROFILE)),$(PROFILE),workflow/profiles/$(PROFILE)))
PLUGIN = if test -e $(FOLDER)/requirements.txt; then \
  .venv/bin/uv pip install -q --python $(PY) --no-deps --require-hashes -r $(FOLDER)/requirements.txt || exit; fi;
WHERE = $(if $(PROFILE),--workflow-profile $(FOLDER),--cores $(CORES))
REPORTS = $(call quoted,$(or $(CERVIX_REPORTS),reports))
# who has no home to write to gets one among the caches
HOMED = test -w "$$HOME" || { HOME="$${CERVIX_CACHE:-$$PWD/.cache}/home"; export HOME; mkdir -p "$$HOME"; };

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1\t/'

.venv/.done: requirements.lock pyproject.toml
	@test -x .venv/bin/uv || { $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 1; }; \
	  $(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q uv; }
	.venv/bin/uv pip sync -q --compile-bytecode --python $(PY) requirements.lock
	.venv/bin/uv pip install -q --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

reports: .venv/.done  ## run every notebook and make the HTML reports: CONFIG=demo|quick|cpu|paper DATA=folder SET="key=value" PROFILE=slurm
	@$(HOMED) $(if $(PROFILE),$(PLUGIN)) exec .venv/bin/snakemake --directory $(REPORTS) $(WHERE) --nolock --rerun-incomplete \
	  --quiet rules host reason --config $(GIVEN)
	@cd $(REPORTS)/$(call quoted,$(CONFIG)) && echo "$$PWD/index.html"

case: .venv/.done  ## a trained network on your own images: RUN=run folder IMAGES=file, folder or 'pattern' DATA=its data
	@$(PY) workflow/jobs.py case "$(RUN)" "$(IMAGES)" "$(or $(DATA),demo)"

score: .venv/.done  ## your predictions on the published splits, measured like ours: PREDICTIONS=mine.csv
	@$(PY) -m tools.score "$(PREDICTIONS)"

data-herlev: .venv/.done  ## Herlev's archive, checked, into DATA (data/): ARCHIVE=smear2005.zip DATA=folder
data-sipakmed: .venv/.done  ## the same for SIPaKMeD's: ARCHIVE=file DATA=folder
data-mobileodt: .venv/.done  ## the same for MobileODT's, by your own Kaggle client unless ARCHIVE=file: DATA=folder
$(DATASETS):
	@$(PY) -m tools.fetch $(@:data-%=%) $(call quoted,$(ARCHIVE)) $(call quoted,$(or $(DATA),data))

pdf: .venv/.done  ## one PDF of a finished report, by Chromium: CONFIG=demo CHROME=/path/to/it
	@$(PY) -m tools.pdf $(call quoted,$(CONFIG))

pictures:  ## README's pictures of pages, by Chromium, after make reports and make case: CHROME=/path/to/it
	@for page in $(PICTURES); do $(or $(CHROME),chromium) --headless $(if $(filter 0,$(shell id -u)),--no-sandbox) --disable-gpu --hide-scrollbars \
	  --window-size=1100,760 --screenshot="docs/pictures/$$(basename $$page).webp" "file://$$(cd $(REPORTS) && pwd)/$$page.html" || exit; done

publish: .venv/.done  ## copy what may be shared of a finished report to reports/published, its table to README: CONFIG=cpu
	$(PY) -m tools.publish $(CONFIG)

doctor: .venv/.done  ## what this machine has for the study, and what to do about each: DATA=folder
	@$(PY) -m tools.doctor "$(DATA)"

lab: .venv/.done  ## open JupyterLab on the notebooks, on this machine alone
	@if [ "$$(id -u)" = 0 ]; then echo "running as root: JupyterLab is started with --allow-root, on 127.0.0.1 alone"; fi
	$(HOMED) exec .venv/bin/jupyter lab --notebook-dir=notebooks --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root)

test: .venv/.done  ## everything that CI runs
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-resilience: .venv/.done  ## broken data, kills at random moments, hostile names, at length: SEED=0
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -m resilience tests/resilience

test-slurm: PROFILE = slurm
test-slurm: .venv/.done  ## a cluster of two nodes on this machine, as root: nodes that die, jobs that are cancelled
	@$(PLUGIN)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -rs -m slurm tests/resilience/test_slurm.py

bench: .venv/.done  ## speed and memory against something else, into benchmarks/results: BENCH="groups predict" for some
	$(PY) -m benchmarks $(BENCH)

lint: .venv/.done  ## ruff on code and notebooks, import-linter on the layers
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports

lock: .venv/.done  ## resolve requirements.lock again from pyproject.toml
	.venv/bin/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q -o requirements.lock
	grep -o 'snakemake-executor-plugin-slurm[^"]*' pyproject.toml | .venv/bin/uv pip compile - --no-deps --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q -o workflow/profiles/slurm/requirements.txt

licences: .venv/.done  ## docs/licences.md again: the licence of every locked package
	$(PY) -m tools.licences

clean:  ## remove what can be made again: caches and unpublished reports
	rm -rf .cache .snakemake && find reports -mindepth 1 -maxdepth 1 ! -name README.md ! -name published -exec rm -rf {} +
