"""The pages of docs/use: their Python runs, their notebook runs, and the list names them all."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "use"
RUN = ("napari.md", "python.md", "torch.md")
TOOLS = ("huggingface_hub", "monai", "napari", "segmentation_models_pytorch", "torch")
BLOCKS = [
    (page, number, block)
    for page in RUN
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(), flags=re.S | re.M)
    )
]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a photo and some photos, as the pages suppose."""
    with resources.as_file(resources.files("ulvm") / "examples") as folder:
        shutil.copy(folder / "light-skin.jpg", tmp_path / "photo.jpg")
        (tmp_path / "photos").mkdir()
        shutil.copy(folder / "grey.png", tmp_path / "photos")
    return tmp_path


def require_tools(block: str) -> None:
    """Skip where a tool that the code imports, itself or by our adapter, is missing."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", block, flags=re.M))
    imported |= {"torch"} if "ulvm.nn" in block or "ulvm.use" in block else set()
    imported |= {"huggingface_hub"} if "ulvm.use.huggingface" in block else set()
    for tool in sorted(imported & set(TOOLS)):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page, _, block in BLOCKS],
    ids=[f"{page}-{number}" for page, number, _ in BLOCKS],
)
def test_python_of_the_pages_runs(page: str, block: str, desk: Path) -> None:
    require_tools(block)
    (desk / "page.py").write_text(block.replace("CLONE", repr(str(ROOT))))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=desk, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"


def test_the_notebook_runs_and_shows_the_notice(desk: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel run the notebook")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(PAGES / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(desk)}}
    ).execute()
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    (shown,) = cells["load"]["outputs"]
    assert "Not a medical device" in shown["data"]["text/html"]
    assert "data:image/png;base64," in shown["data"]["text/html"]
    assert (desk / "mask.png").is_file()
    assert (desk / "overlay.png").is_file()
    areas = re.findall(r"([\d.]+) %", cells["threshold"]["outputs"][0]["text"])
    assert sorted(map(float, areas), reverse=True) == [float(area) for area in areas]


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads((PAGES / "notebook.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 3
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_list_names_every_page_and_its_links_lead_somewhere() -> None:
    text = (PAGES / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text)
    assert {name for name, _ in links} >= {path.name for path in PAGES.iterdir()} - {"README.md"}
    for name, anchor in links:
        assert (PAGES / name).exists(), name
        assert not anchor or anchor in anchors(PAGES / name), anchor
    rows = re.findall(r"^\| ([^|]+) \|", text, flags=re.M)[1:]
    assert rows == sorted(rows, key=str.casefold)


def test_extras_that_the_list_names_are_there() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"\| `([\w-]+)` \|$", (PAGES / "README.md").read_text(), flags=re.M)
    assert set(named) <= set(extras)
