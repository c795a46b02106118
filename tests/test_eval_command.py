"""The command eval: which pictures it scores, by which split, on what, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import run
from ulvm import synthetic
from ulvm.image import read_mask
from ulvm.models import find_weights

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def trained(drawn: Path, tmp_path: Path) -> Path:
    """A run of a split file of one's own, and that file's folder beside it."""
    pytest.importorskip("torch")
    where = ("--dataset", "folder", "--data", drawn)
    run("data", "split", *where, "--folds", 3, "--out", tmp_path / "splits")
    split = tmp_path / "splits" / "fold1-of-3-seed42.json"
    small = ("--set", "data.image_size=64", "--set", "train.epochs=1", "--split", split)
    done = run("train", "paper", *where, "--out", tmp_path / "run", *small)
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def test_a_model_given_away_is_scored_by_its_own_split(drawn: Path, trained: Path) -> None:
    """The split file is gone or made anew with more pictures; copies are known by their looks."""
    splits_dir, out = trained.parent / "splits", trained.parent / "out"
    file = splits_dir / "fold1-of-3-seed42.json"
    parts = json.loads(file.read_text())["parts"]
    given = shutil.copy(trained / "weights.safetensors", trained.parent / "given.safetensors")

    def cases(*words: object) -> set[str]:
        done = run("eval", given, "--dataset", "folder", *words, "--out", out)
        assert done.exit_code == 0, done.output
        return {case["id"] for case in json.loads((out / "cases.json").read_text())}

    more = trained.parent / "more"
    synthetic.write_dataset(more, 14, seed=77, size_hw=(96, 96))
    assert cases("--data", more) == {f"drawn_{index:04}" for index in range(14)}  # others' names
    for side in ("images", "masks"):
        for index, path in enumerate(sorted((more / side).iterdir())[:6]):
            path.rename(drawn / side / path.name.replace("drawn", "new"))
            if index == 0:
                suffix = path.suffix
        source = drawn / side / f"{parts['train'][0]}{suffix}"
        shutil.copy(source, drawn / side / f"copy{suffix}")
        turned = Image.open(source).transpose(Image.Transpose.ROTATE_90)
        turned.save(drawn / side / f"turned{'.jpg' if side == 'images' else suffix}", quality=80)
    file.unlink()
    assert cases("--data", drawn) == set(parts["test"])
    done = run(
        "data", "split", "--dataset", "folder", "--data", drawn, "--folds", 3, "--out", splits_dir
    )
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())["parts"] != parts
    assert cases("--data", drawn) == set(parts["test"])
    seen = {*parts["train"], *parts["validation"]}
    everything = {path.stem for path in (drawn / "images").iterdir()}
    assert cases("--data", drawn, "--split", "all") == everything - seen - {"copy", "turned"}
    tested = {"test": ["turned", parts["test"][0]]}
    own = trained.parent / "own.json"
    own.write_text(json.dumps({"dataset": "folder", "parts": tested}))
    assert cases("--data", drawn, "--split", own) == set(tested["test"])
    assert json.loads((out / "scores.json").read_text())["look_like_seen"] == ["turned"]
    words = ("--data", drawn, "--split", own, "--exclude-seen")
    assert cases(*words) == {parts["test"][0]}
    refused = run(
        "eval", given, "--dataset", "folder", "--data", drawn, "--split", file, "--out", out
    )
    assert refused.exit_code == 1
    assert "were in the training or validation part" in refused.output


@pytest.mark.parametrize("device", ["cuda", "mps", "meta", "abacus"])
def test_eval_on_a_device_that_is_not_there(drawn: Path, trained: Path, device: str) -> None:
    there = {"cuda": "torch.cuda", "mps": "torch.backends.mps"}.get(device)
    if there and pytest.importorskip(there).is_available():
        pytest.skip(f"this machine has {device}")
    words = ("--dataset", "folder", "--data", drawn, "--out", trained.parent / "out")
    done = run("eval", trained, *words, "--device", device)
    assert done.exit_code == 1
    assert f"Device '{device}' cannot be used" in done.output
    assert len(done.output) < 400


def test_bundled_model_is_scored_by_the_same_command(drawn: Path, tmp_path: Path) -> None:
    where = ("--dataset", "folder", "--data", drawn)
    run("data", "split", *where, "--folds", 3, "--out", tmp_path / "splits")
    split = sorted((tmp_path / "splits").iterdir())[0]
    result = run("eval", "bundled", *where, "--split", split, "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    cases = json.loads((tmp_path / "scores" / "cases.json").read_text())
    assert np.mean([case["dice"] for case in cases]) > 0.7
    again = ("--split", split, "--out", tmp_path / "again", "--engine", "onnx")
    assert run("eval", "bundled", *where, *again).exit_code == 0
    assert json.loads((tmp_path / "again" / "cases.json").read_text()) == cases


def test_pictures_without_a_split_are_all_scored_and_by_kind(drawn: Path, tmp_path: Path) -> None:
    ids = [path.stem for path in (drawn / "images").iterdir()]
    rows = [f"{id_};{'mel' if id_ < 'drawn_0004' else 'nv'}" for id_ in ids]
    (drawn / "groups.csv").write_text("\n".join(["id;diagnosis", *rows]))
    words = ("eval", "bundled", "--dataset", "folder", "--data", drawn, "--out", tmp_path / "out")
    done = run(*words, "--by", "size,contrast,tone,diagnosis")
    assert done.exit_code == 0, done.output
    assert "| mel | 4 |" in done.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["images"] == 9
    assert scores["split"] | {"hash": ""} == {"name": "all", "hash": "", "part": "test (unseen)"}
    assert [table["by"] for table in scores["strata"]] == ["size", "contrast", "tone", "diagnosis"]
    assert all(sum(row["images"] for row in table["rows"]) == 9 for table in scores["strata"])
    wrong = run(*words, "--by", "diagnose")
    assert wrong.exit_code == 1
    assert "Did you mean 'diagnosis'" in wrong.output


def test_all_pictures_are_those_that_the_model_has_not_seen(drawn: Path, tmp_path: Path) -> None:
    seen = [path for side in ("images", "masks") for path in sorted((drawn / side).iterdir())[:2]]
    for path in seen:
        path.rename(path.with_stem(f"ISIC_000000{path.stem[-1]}"))  # ids of its training part
    words = ("eval", "bundled", "--dataset", "folder", "--data", drawn, "--split", "all")
    done = run(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    cases = json.loads((tmp_path / "out" / "cases.json").read_text())
    assert [case["id"] for case in cases] == [f"drawn_000{index}" for index in range(2, 9)]


def test_eval_scores_the_masks_of_predict_as_the_isic_challenge_does(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path / "drawn", 9, seed=5, size_hw=(300, 420))
    where = ("--dataset", "folder", "--data", tmp_path / "drawn")
    run("data", "split", *where, "--folds", 3, "--out", tmp_path / "splits")
    split = sorted((tmp_path / "splits").iterdir())[0]
    words = ("--split", split, "--isic", "--out", tmp_path / "scores")
    result = run("eval", "bundled", *where, *words)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())["challenge"]
    assert f"threshold_jaccard  {found['threshold_jaccard']:.4f}" in result.output

    run("predict", "--raw", tmp_path / "drawn" / "images", "--out", tmp_path / "out")
    overlaps = []
    for case in json.loads((tmp_path / "scores" / "cases.json").read_text()):
        mask = read_mask(tmp_path / "out" / f"{case['id']}_mask.png") > 0
        (path,) = (tmp_path / "drawn" / "masks").glob(f"{case['id']}*")
        truth = read_mask(path) > 0
        assert mask.shape == truth.shape == (300, 420)
        overlaps.append((mask & truth).sum() / (mask | truth).sum())
    assert found["jaccard"] == pytest.approx(np.mean(overlaps))


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'onnxruntime', 'safetensors'):
            raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
from ulvm.cli import main
main()
"""


def test_eval_of_weights_needs_no_torch(drawn: Path, tmp_path: Path) -> None:
    where = ("--dataset", "folder", "--data", drawn)
    run("data", "split", *where, "--folds", 3, "--out", tmp_path / "splits")
    split = sorted((tmp_path / "splits").iterdir())[0]
    words = ["eval", find_weights(), *where, "--split", split]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, [*words, "--out", tmp_path / "scores"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with_torch = run(*words, "--device", "cpu", "--out", tmp_path / "again")
    assert with_torch.exit_code == 0, with_torch.output
    texts = [(tmp_path / name / "cases.json").read_text() for name in ("scores", "again")]
    assert texts[0] == texts[1]


def test_eval_of_a_network_that_the_engine_does_not_run_takes_torch(
    drawn: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from ulvm.nn.checkpoint import save_weights
    from ulvm.nn.networks import build_network
    from ulvm.spec import ModelSpec, RunSpec

    run_spec = RunSpec(model=ModelSpec(mixer="bidirectional"))
    save_weights(tmp_path / "w.safetensors", build_network(run_spec.model), run_spec, {})
    where = ("--dataset", "folder", "--data", drawn)
    run("data", "split", *where, "--folds", 3, "--out", tmp_path / "splits")
    split = sorted((tmp_path / "splits").iterdir())[0]
    words = ("eval", tmp_path / "w.safetensors", *where, "--split", split)
    result = run(*words, "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    refused = run(*words, "--out", tmp_path / "scores", "--engine", "c")
    assert refused.exit_code == 1
    assert "ONNX" in refused.output
