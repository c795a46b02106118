# make demo   segment the example pictures with the plain package (no torch)
# make test   run all tests in an environment with the training extra
# make check  lint, types, and the plain package without torch
# make docs   regenerate the generated parts of the documents

PYTHON ?= python3
PIP = -m pip --disable-pip-version-check install --quiet
# Everything the tests need is pinned only where a newer build would pull gigabytes.
CONSTRAINED = $(PIP) --constraint constraints.txt

.PHONY: demo test check plain docs clean

demo: .venv/ready
	.venv/bin/ulvm demo

test: .venv-test/ready
	.venv-test/bin/python -m pytest -n 2 --dist loadfile

check: .venv-test/ready plain
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

# The runtime installs and predicts where torch is not installed at all.
plain: .venv/ready
	.venv/bin/python tests/plain_package.py

docs: .venv-test/ready
	.venv-test/bin/python bench/tables.py

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) .
	touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(CONSTRAINED) torch
	.venv-test/bin/python $(CONSTRAINED) --editable '.[train,tensorboard]' pytest pytest-xdist ruff mypy
	touch $@

clean:
	rm -rf .venv .venv-test demo-output
