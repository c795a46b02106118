# make demo   segment the example pictures with the plain package (no torch)
# make test   run all tests but the browser's, in an environment with the training extra
# make check  lint, types, and the plain package without torch
# make engine compile the engine for this machine and for the page, where a source is newer
# make wheels the wheels of all platforms, in dist/
# make sanitize   run the engine under the address, undefined-behaviour and thread sanitizers (clang)
# make fuzz   feed its reader of weights a million damaged files (clang)
# make web-test   run the page in Chromium against the Python side
# make tools  test other people's tools with ulvm in them (docs/use/); installs gigabytes of its own
# make site   the page as a folder for any static host; `make screenshots` photographs it
# make bench  time the model beside its peers on this CPU; the GPU's scripts are in bench/ too
# make docs   draw the figures and regenerate the tables of the documents from result files; says what
#             is missing (results/: runs of `ulvm reproduce`, docs/make/areas.py and counts.py,
#             bench/cpu.py --presets, the last on an idle machine)

PYTHON ?= python3
PIP = -m pip --disable-pip-version-check install --quiet
# Everything the tests need is pinned only where a newer build would pull gigabytes.
CONSTRAINED = $(PIP) --constraint constraints.txt
# As build.py names them.
PLATFORMS = x86_64-linux-gnu aarch64-linux-gnu x86_64-linux-musl aarch64-linux-musl \
	x86_64-macos aarch64-macos x86_64-windows aarch64-windows

# Extras that `make tools` installs, and what their tests need besides.
TOOLS = api,cvat,eval,huggingface,label-studio,monai,napari,ray,smp
TOOLS_TESTS = pytest nbclient nbformat ipykernel pytorch-ignite npe2 pycocotools label-studio-sdk \
	httpx openapi-spec-validator

.PHONY: demo test check plain engine wheels sanitize fuzz web-test tools site screenshots bench docs clean

demo: .venv/ready
	.venv/bin/ulvm demo

test: engine
	.venv-test/bin/python -m pytest -n 2 --dist loadfile --ignore tests/web

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
	for platform in $(PLATFORMS); do \
		ULVM_PLATFORM=$$platform .venv-build/bin/python -m build --wheel --no-isolation || exit 1; \
	done

sanitize: .venv-test/ready
	.venv-test/bin/python tests/engine/sanitize.py

fuzz: .venv-test/ready
	.venv-test/bin/python tests/engine/sanitize.py --fuzz 1000000

# Skipped with a reason where chromium is not installed. Alone, for it measures frames.
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

docs: .venv-test/ready
	.venv-test/bin/python docs/make/figures.py
	.venv-test/bin/python docs/make/drawn_pictures.py
	.venv-test/bin/python docs/make/tables.py

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) .
	touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(CONSTRAINED) torch
	.venv-test/bin/python $(CONSTRAINED) --editable '.[train,tensorboard,ncnn]' pytest pytest-xdist playwright ruff mypy \
		isic-challenge-scoring hatchling ziglang 'triton; platform_system == "Linux"'
	touch $@

# Not constrained: torchvision, which some need, belongs to one torch.
.venv-tools/ready: pyproject.toml
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python $(PIP) --editable '.[$(TOOLS)]' $(TOOLS_TESTS)
	touch $@

.venv-build/ready: pyproject.toml
	$(PYTHON) -m venv .venv-build
	.venv-build/bin/python $(PIP) build $$($(PYTHON) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	touch $@

clean:
	rm -rf .venv .venv-test .venv-tools .venv-build build dist demo-output site
	rm -f src/ulvm/engine/libulvm.* src/ulvm/web/*.wasm
