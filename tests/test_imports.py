"""The runtime needs neither torch nor ONNX Runtime: proved by blocking them; the block works."""

import subprocess
import sys
from pathlib import Path

import pytest

import ulvm

PACKAGE = Path(ulvm.__file__).parent
RUNTIME = sorted(
    f"ulvm.{path.stem}" for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")
)
RUNTIME.remove("ulvm.onnx")  # of the extra
RUNTIME += ["ulvm.datasets", "ulvm.engine"]

BLOCK = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in (
            'torch', 'scipy', 'sklearn', 'matplotlib', 'onnx', 'onnxruntime', 'tqdm'
        ):
            raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
importlib.import_module(sys.argv[1])
"""


def import_blocked(module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK, module], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", RUNTIME)
def test_runtime_module_imports_without_torch(module: str) -> None:
    done = import_blocked(module)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "needed"), [("ulvm.nn.model", "torch"), ("ulvm.onnx", "onnxruntime")]
)
def test_the_block_can_fail(module: str, needed: str) -> None:
    """Meta-test: what does need a package fails under the same block, with its reason."""
    done = import_blocked(module)
    assert done.returncode != 0
    assert f"{needed} is blocked" in done.stderr


def test_every_module_is_on_the_architecture_page() -> None:
    page = (PACKAGE.parents[1] / "ARCHITECTURE.md").read_text()
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    missing = [path.name for path in modules if f"`{path.relative_to(PACKAGE)}`" not in page]
    assert missing == []
