# make demo   segment the example pictures with the plain package (no torch)
# make test   run all tests but the browser's, in an environment with the training extra
# make check  lint, types, and the plain package without torch
# make web    fetch the pinned browser runtime from npm, beside the page
# make web-test   run the page in Chromium against the Python side
# make site   the page as a folder for any static host; `make screenshots` photographs it
# make bench  time the model beside its peers on this CPU; the GPU's scripts are in bench/ too
# make docs   draw the figures and regenerate the tables of the documents from result files; says what
#             is missing (results/: runs of `ulvm reproduce`, bench/areas.py, bench/complexity.py,
#             bench/cpu.py --presets, the last on an idle machine)

PYTHON ?= python3
PIP = -m pip --disable-pip-version-check install --quiet
# Everything the tests need is pinned only where a newer build would pull gigabytes.
CONSTRAINED = $(PIP) --constraint constraints.txt
RUNTIME = src/ulvm/web/runtime

.PHONY: demo test check plain web web-test site screenshots bench docs clean

demo: .venv/ready
	.venv/bin/ulvm demo

test: .venv-test/ready
	.venv-test/bin/python -m pytest -n 2 --dist loadfile --ignore tests/web

check: .venv-test/ready plain
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

# The runtime installs and predicts where torch is not installed at all.
plain: .venv/ready
	.venv/bin/python tests/plain_package.py

web: $(RUNTIME)/ort.wasm.min.mjs

# Skipped with a reason where chromium is not installed. Alone, for it measures frames.
web-test: .venv-test/ready web
	.venv-test/bin/python -m pytest -s tests/web

site: web
	rm -rf site
	cp -r src/ulvm/web site
	cp src/ulvm/weights/ulvm-isic2017.onnx site/model.onnx
	cp src/ulvm/examples/light-skin.jpg site/example.jpg

# Needs chromium, and playwright in the test environment.
screenshots: web
	.venv-test/bin/python web/screenshots.py

bench: .venv-test/ready
	.venv-test/bin/python bench/cpu.py

docs: .venv-test/ready
	.venv-test/bin/python bench/figures.py
	.venv-test/bin/python bench/drawn_pictures.py
	.venv-test/bin/python bench/tables.py

# WebAssembly with SIMD and threads; LOG.md says why not WebGPU.
$(RUNTIME)/ort.wasm.min.mjs: web/package-lock.json
	cd web && npm ci --silent
	mkdir -p $(RUNTIME)
	cd web/node_modules/onnxruntime-web/dist && cp ort.wasm.min.mjs \
		ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm \
		$(CURDIR)/$(RUNTIME)

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) .
	touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(CONSTRAINED) torch
	.venv-test/bin/python $(CONSTRAINED) --editable '.[train,tensorboard,ncnn]' pytest pytest-xdist playwright ruff mypy \
		'triton; platform_system == "Linux"'
	touch $@

clean:
	rm -rf .venv .venv-test demo-output site web/node_modules $(RUNTIME)
