# make demo   segment the example pictures with the plain package (no torch)
# make test   run all tests but the browser's, in an environment with the training extra
# make check  lint, types, and the plain package without torch
# make engine compile the engine for this machine and for the page, where a source is newer
# make wheels the wheels of all platforms and their SHA-256, in dist/
# make sanitize   run the engine under clang's sanitizers: address, undefined, thread, memory
# make chaos  kill training at each of its moments, break its disk and data, compare what goes on
# make fuzz TARGET=picture   feed a reader a million damaged files, guided by coverage (docs/limits.md)
# make web-test   run the page in Chromium against the Python side
# make tools  test other people's tools with ulvm in them (docs/use/); installs gigabytes of its own
# make site   the page as a folder for any static host; `make screenshots` photographs it
# make bench  time the model beside its peers on this CPU; the GPU's scripts are in bench/ too
# make docs   draw the figures and regenerate the tables of the documents from result files; says what
#             is missing (results/: runs of `ulvm reproduce`, docs/make/areas.py and counts.py,
#             bench/cpu.py --presets, the last on an idle machine)
# make lock   write requirements/*.txt anew from pyproject.toml: every package with its hashes

PYTHON ?= python3
# What one process has compiled the next finds, also where the environment says no, as in images of
# Docker: tests start Python a hundred times, and torch without this takes twice as long.
export PYTHONDONTWRITEBYTECODE =
# --no-compile: Python compiles the quarter that is imported when it is.
PIP = -m pip --disable-pip-version-check install --quiet --no-compile
# Exactly the files that `make lock` saw, whole lists, so pip looks for nothing else.
LOCKED = $(PIP) --require-hashes --no-deps --no-build-isolation
LOCK = .venv-lock/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock' \
	--constraint requirements/torch.txt --no-emit-package torch
# zig compiles its C libraries once a machine, not once a clone: a minute for musl.
export ZIG_GLOBAL_CACHE_DIR ?= $(HOME)/.cache/zig
# As build.py names them.
PLATFORMS = x86_64-linux-gnu aarch64-linux-gnu x86_64-linux-musl aarch64-linux-musl \
	x86_64-macos aarch64-macos x86_64-windows aarch64-windows

# Extras that `make tools` installs, and what their tests need besides.
TOOLS = api,bioimageio,cvat,dicom,eval,heic,huggingface,label-studio,monai,napari,ray,smp
# bioimageio.spec 0.5.12 fails with pydantic 2.14.
TOOLS_TESTS = pytest nbclient nbformat ipykernel pytorch-ignite npe2 pycocotools label-studio-sdk \
	httpx openapi-spec-validator jsonschema pillow-heif 'pydantic<2.14'

.PHONY: demo test check plain engine wheels sanitize fuzz chaos web-test tools site screenshots bench docs lock clean

demo: .venv/ready
	.venv/bin/ulvm demo

# In the order of the folders, slow ones first; else files of few tests, the slowest, would be last.
SPREAD = --dist loadfile --no-loadscope-reorder

test: engine
	.venv-test/bin/python -m pytest -n 2 $(SPREAD) --ignore tests/web

check: .venv-test/ready plain
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

# The runtime installs and predicts where neither torch nor ONNX Runtime is installed.
plain: .venv/ready
	.venv/bin/python tests/plain_package.py

engine: .venv-test/ready
	.venv-test/bin/python src/ulvm/engine/build.py
	.venv-test/bin/python src/ulvm/engine/build.py --wasm

# The same bytes each time: sources, compiler and packer are pinned.
wheels: .venv-build/ready
	rm -rf dist
	for platform in $(PLATFORMS); do \
		ULVM_PLATFORM=$$platform .venv-build/bin/python -m build --wheel --no-isolation || exit 1; \
	done
	cd dist && sha256sum *.whl > SHA256SUMS

sanitize: .venv-test/ready
	.venv-test/bin/python tests/engine/sanitize.py

# c-…: the engine's C under sanitizers (clang); the others in Python, by atheris.
TARGET ?= c-weights
CASES ?= 1000000
fuzz: .venv-test/ready $(if $(filter c-%,$(TARGET)),,.venv-fuzz/ready)
	$(if $(filter c-%,$(TARGET)), \
		.venv-test/bin/python tests/engine/sanitize.py --fuzz $(CASES) --target $(TARGET:c-%=%), \
		.venv-fuzz/bin/python tests/fuzz/run.py $(TARGET) --cases $(CASES))

chaos: .venv-test/ready
	.venv-test/bin/python tests/nn/chaos.py

# Skipped with a reason where chromium is not installed.
web-test: engine
	.venv-test/bin/python -m pytest -s tests/web

# The tools' own plug-ins of pytest and their deprecations are theirs.
tools: engine .venv-tools/ready
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-tools/bin/python -m pytest --override-ini addopts= \
		--import-mode=importlib -rs -W default tests/use tests/nn/test_reuse.py

site: engine
	PYTHONPATH=src .venv-test/bin/python web/site.py site

# Needs chromium, and playwright in the test environment.
screenshots: engine
	.venv-test/bin/python web/screenshots.py

bench: .venv-test/ready
	.venv-test/bin/python bench/cpu.py

# For Python 3.11 to 3.13 and every platform. Newer versions only with `make lock UPGRADE=--upgrade`.
lock: .venv-lock/bin/uv
	$(LOCK) $(UPGRADE) --output-file requirements/run.txt
	$(LOCK) $(UPGRADE) --group build --output-file requirements/build.txt
	$(LOCK) $(UPGRADE) --group dev --extra train --extra tensorboard --output-file requirements/test.txt

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP) uv==0.13.9

docs: .venv-test/ready
	.venv-test/bin/python docs/make/figures.py
	.venv-test/bin/python docs/make/trust.py
	.venv-test/bin/python docs/make/drawn_pictures.py
	.venv-test/bin/python docs/make/tables.py

# As a user installs it: the wheel and what it needs, nothing that builds it.
.venv/ready: pyproject.toml requirements/run.txt .venv-build/ready
	$(PYTHON) -m venv .venv
	.venv/bin/python $(LOCKED) --requirement requirements/run.txt
	rm -rf build/demo
	.venv-build/bin/python -m build --wheel --no-isolation --outdir build/demo
	.venv/bin/python $(PIP) --no-deps --no-index build/demo/*.whl
	touch $@

# Torch last and not by hash, for its CPU and CUDA builds are files of one name.
.venv-test/packages: requirements/build.txt requirements/test.txt requirements/torch.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(LOCKED) --requirement requirements/build.txt
	.venv-test/bin/python $(LOCKED) --requirement requirements/test.txt
	.venv-test/bin/python $(PIP) --requirement requirements/torch.txt
	touch $@

.venv-test/ready: pyproject.toml .venv-test/packages
	.venv-test/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv-fuzz/ready: pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python $(PIP) --editable . atheris
	touch $@

# Not constrained: torchvision, which some need, belongs to one torch.
.venv-tools/ready: pyproject.toml
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python $(PIP) --editable '.[$(TOOLS)]' $(TOOLS_TESTS)
	touch $@

.venv-build/ready: requirements/build.txt
	$(PYTHON) -m venv .venv-build
	.venv-build/bin/python $(LOCKED) --requirement requirements/build.txt
	touch $@

clean:
	rm -rf .venv .venv-test .venv-build .venv-fuzz .venv-tools .venv-lock build dist demo-output site
	rm -f src/ulvm/engine/libulvm.* src/ulvm/web/*.wasm
