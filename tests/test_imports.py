"""The runtime needs neither torch nor ONNX Runtime: proved by blocking them; the block works.

And no module imports, by itself or through others, one that imports it.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import ulvm

PACKAGE = Path(ulvm.__file__).parent
RUNTIME = sorted(
    f"ulvm.{path.stem}" for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")
)
RUNTIME.remove("ulvm.onnx")  # of the extra
RUNTIME += ["ulvm.datasets", "ulvm.engine", "ulvm.reproduce.experiments", "ulvm.reproduce.report"]

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


def test_the_command_line_alone_imports_neither_nn_nor_reproduce() -> None:
    listing = "import sys, ulvm.cli; print([name for name in sys.modules if name[:4] == 'ulvm'])"
    command = [sys.executable, "-c", listing]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'ulvm.cli'" in done.stdout
    assert "ulvm.nn" not in done.stdout
    assert "ulvm.reproduce" not in done.stdout


def read_imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules that each of these imports, inside functions too.

    Args:
        sources: Name of each module → its text.
    """
    graph: dict[str, set[str]] = {}
    for module, text in sources.items():
        named = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                named += [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                inner = [f"{node.module}.{each.name}" for each in node.names]
                named += [name if name in sources else str(node.module) for name in inner]
        graph[module] = {name for name in named if name in sources}
    return graph


def find_circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import one another in a circle; none if there is none."""
    try:
        graphlib.TopologicalSorter(read_imports(sources)).prepare()
    except graphlib.CycleError as problem:
        return list(problem.args[1])
    return []


def test_no_modules_import_one_another_in_a_circle() -> None:
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("ulvm", *path.relative_to(PACKAGE).with_suffix("").parts)
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text()
    assert len(read_imports(sources)["ulvm.cli"]) > 3
    assert find_circle(sources) == []


def test_a_circle_is_found_through_packages_and_functions() -> None:
    """Meta-test: a module that imports its user late, and by way of a package."""
    sources = {
        "ulvm.model": "from ulvm.kernels import run",
        "ulvm.kernels": "def run():\n    from ulvm.kernels import modules",
        "ulvm.kernels.modules": "import torch\nimport ulvm.model",
    }
    assert set(find_circle(sources)) == set(sources)
    sources["ulvm.kernels.modules"] = "import torch"
    assert find_circle(sources) == []


def test_every_module_is_on_the_architecture_page() -> None:
    page = (PACKAGE.parents[1] / "ARCHITECTURE.md").read_text()
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    missing = [path.name for path in modules if f"`{path.relative_to(PACKAGE)}`" not in page]
    assert missing == []
