"""The command line: every command runs, and mistakes give one sentence and exit code 1 or 2."""

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from command_line import run
from ulvm import __version__, synthetic
from ulvm.cli import main
from ulvm.image import read_mask
from ulvm.models import find_weights

COMMANDS = [
    "predict",
    "demo",
    "train",
    "eval",
    "export",
    "inspect",
    "presets",
    "reproduce",
    "data check",
]
COMMANDS += ["data prepare", "data split", "data draw", "serve"]

pytestmark = pytest.mark.usefixtures("cache")


def test_version() -> None:
    assert run("--version").output.strip() == f"ulvm, version {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert len(result.output.splitlines()) > 5


def test_commands_listed_here_are_all_there_are() -> None:
    groups = {"data": main.commands["data"].commands}  # type: ignore[attr-defined]
    names = {name for name in main.commands if name not in groups}
    names |= {f"{group} {name}" for group, commands in groups.items() for name in commands}
    assert names == set(COMMANDS)


def test_predict_reports_a_bad_file_and_does_the_others(tmp_path: Path) -> None:
    picture = synthetic.draw_lesion(2, (90, 140))
    Image.fromarray(picture.image_rgb).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    result = run("predict", tmp_path, "--out", tmp_path / "out", "--overlay")
    assert result.exit_code == 1
    assert "1 of 2 pictures done" in result.stdout
    assert "Not a medical device" in result.stdout
    assert "bad.jpg" in result.stderr
    mask = read_mask(tmp_path / "out" / "good_mask.png") > 0
    assert mask.shape == (90, 140)
    overlap = 2 * (mask & picture.mask).sum() / (mask.sum() + picture.mask.sum())
    assert overlap > 0.8
    with Image.open(tmp_path / "out" / "good_overlay.png") as overlay:
        assert overlay.size == (140, 90)


def test_predict_reads_standard_input_and_prints_json(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(synthetic.draw_lesion(4).image_rgb).save(buffer, "JPEG")
    result = run(
        "predict", "-", "--json", "--threshold", "0.3", "--out", tmp_path, input=buffer.getvalue()
    )
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout)
    assert line["error"] is None
    assert line["threshold"] == 0.3
    assert 0 < line["area_fraction"] < 1


def test_predict_takes_weights_run_folders_and_onnx(tmp_path: Path) -> None:
    Image.fromarray(synthetic.draw_lesion(2, (90, 140)).image_rgb).save(tmp_path / "photo.png")
    (tmp_path / "run").mkdir()
    shutil.copy(find_weights("skin"), tmp_path / "run" / "weights.safetensors")
    masks = []
    for number, words in enumerate(
        [
            ("--model", "skin"),
            ("--model", "skin", "--engine", "c"),
            ("--model", "skin", "--engine", "onnx"),
            ("--model", tmp_path / "run"),
            ("--model", tmp_path / "run" / "weights.safetensors"),
            ("--model", find_weights("skin", onnx=True)),
        ]
    ):
        out = tmp_path / str(number)
        result = run("predict", tmp_path / "photo.png", "--out", out, *words)
        assert result.exit_code == 0, result.output
        masks.append(read_mask(out / "photo_mask.png"))
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


def test_demo_does_all_examples(tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "6 of 6 pictures done" in result.output
    assert len(list(tmp_path.glob("*_overlay.png"))) == 6


def test_mistakes_are_told_in_sentences(tmp_path: Path) -> None:
    for words, said in [
        (
            ("predict", tmp_path / "none.jpg"),
            f"File not found: {tmp_path / 'none.jpg'}. Check the path.",
        ),
        (
            ("predict", tmp_path, "--model", tmp_path / "none.onnx"),
            f"Model not found: {tmp_path / 'none.onnx'}. ",
        ),
        (("inspect", "papr"), "Did you mean 'paper'"),
        (("inspect", "paper", "--set", "model.branchs=2"), "Did you mean 'branches'?"),
        (("data", "check", "--dataset", "ph2", "--data", tmp_path), "ph2"),
    ]:
        result = run(*words)
        assert result.exit_code == 1, words
        assert said in result.stderr, words
        assert "Traceback" not in result.output


def test_data_commands(drawn: Path, tmp_path: Path) -> None:
    where = ("--dataset", "folder", "--data", drawn)
    checked = run("data", "check", *where)
    assert checked.exit_code == 0, checked.output
    assert "9 pairs" in checked.output
    prepared = run("data", "prepare", *where, "--size", 64)
    assert "9 pairs" in prepared.output
    rows = [
        f"{path.stem},{index // 3}"
        for index, path in enumerate(sorted((drawn / "images").iterdir()))
    ]
    groups = tmp_path / "groups.csv"
    groups.write_text("\n".join(["id,group", *rows]))
    split = run("data", "split", *where, "--folds", 3, "--groups", groups, "--out", tmp_path)
    assert split.exit_code == 0, split.output
    stored = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("fold*.json"))]
    assert [len(each["parts"]["test"]) for each in stored] == [3, 3, 3]
    groups.rename(drawn / "groups.csv")
    beside = run("data", "split", *where, "--folds", 3, "--out", tmp_path / "again")
    assert f"groups: {drawn / 'groups.csv'}" in beside.output
    again = sorted((tmp_path / "again").iterdir())
    assert [json.loads(path.read_text()) for path in again] == stored
    next((drawn / "masks").iterdir()).unlink()
    broken = run("data", "check", *where)
    assert broken.exit_code == 1


def test_train_eval_and_resume_from_the_command_line(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    where = ("--dataset", "folder", "--data", drawn)
    run("data", "split", *where, "--folds", 3, "--out", tmp_path / "splits")
    split = sorted((tmp_path / "splits").iterdir())[0]
    small = ("--set", "data.image_size=64", "--set", "train.batch_size=2", "--split", split)
    out = tmp_path / "run"
    trained = run("train", "paper", *where, "--out", out, *small, "--set", "train.epochs=1")
    assert trained.exit_code == 0, trained.output
    (proposed,) = re.findall("next: ulvm (.*)", trained.output)
    followed = run(*shlex.split(proposed))
    assert followed.exit_code == 0, followed.output
    again = run(
        "train", "paper", *where, "--out", out, *small, "--set", "train.epochs=2", "--resume"
    )
    assert again.exit_code == 0, again.output
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    scored = run("eval", out, *where, "--out", tmp_path / "scores")
    assert scored.exit_code == 0, scored.output
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["images"] == 3
    assert scores["split"]["part"] == "test"
    other = sorted((tmp_path / "splits").iterdir())[1]
    leaking = run("eval", out, *where, "--split", other, "--out", tmp_path / "leak")
    assert leaking.exit_code == 1
    assert "were in the training or validation part" in leaking.output


def test_what_training_proposes_next_is_a_whole_command(tmp_path: Path) -> None:
    """Its words are quoted, and the options of masks are in it."""
    pytest.importorskip("torch")
    drawn, out = tmp_path / "my pictures", tmp_path / "run 1"
    synthetic.write_dataset(drawn, 9, seed=5, size_hw=(96, 96))
    for path in (drawn / "masks").iterdir():  # of half the size
        Image.open(path).resize((48, 48), Image.Resampling.NEAREST).save(path)
    where = ("--dataset", "folder", "--data", drawn)
    refused = run("data", "split", *where, "--folds", 3, "--by-area", "--out", tmp_path)
    assert "--resize-masks" in refused.output
    assert refused.exit_code == 1
    halves = (*where, "--resize-masks")
    assert (
        run("data", "split", *halves, "--by-area", "--folds", 3, "--out", tmp_path).exit_code == 0
    )
    prepared = run("data", "prepare", *halves, "--size", 64)
    assert prepared.exit_code == 0, prepared.output
    cached = set((tmp_path / "cache").iterdir())
    small = ("--set", "data.image_size=64", "--set", "train.epochs=1")
    split = ("--split", tmp_path / "fold1-of-3-seed42.json")
    trained = run("train", "paper", *halves, *small, *split, "--out", out)
    assert trained.exit_code == 0, trained.output
    assert set((tmp_path / "cache").iterdir()) == cached
    score = json.loads((out / "run.json").read_text())["best"]["validation_dsc_pooled"]
    assert f"of epoch 1: validation DSC {score:.4f} (pooled)" in trained.output
    (following,) = [line for line in trained.output.splitlines() if line.startswith("next: ")]
    words = shlex.split(following.removeprefix("next: "))
    assert words[:3] == ["ulvm", "eval", str(out)]
    scored = run(*words[1:])
    assert scored.exit_code == 0, scored.output
    assert (out / "test-folder" / "scores.json").exists()


def sort_into_parts(folder: Path) -> dict[str, set[str]]:
    """Nine drawn pictures in train/, val/ and test/."""
    synthetic.write_dataset(folder / "flat", 9, seed=5, size_hw=(64, 64))
    parts: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for index, path in enumerate(sorted((folder / "flat" / "images").iterdir())):
        part = ("train", "train", "val", "test")[index % 4]
        parts[part].add(path.stem)
        for side in ("images", "masks"):
            (folder / part / side).mkdir(parents=True, exist_ok=True)
            (folder / "flat" / side / path.name).rename(folder / part / side / path.name)
    shutil.rmtree(folder / "flat")
    return parts


def test_a_sorted_folder_is_its_own_split(tmp_path: Path) -> None:
    """From skin's weights; what is trained with is never scored, and skin needs no split."""
    pytest.importorskip("torch")
    mine, out = tmp_path / "mine", tmp_path / "run"
    parts = sort_into_parts(mine)
    where = ("--dataset", "folder", "--data", mine)
    small = ("--set", "data.image_size=256", "--set", "train.epochs=3", "--set", "train.patience=1")
    still = ("--set", "train.learning_rate=0", "--set", "train.min_learning_rate=0")
    done = run("train", "paper", "--from", "skin", *where, *small, *still, "--out", out)
    assert done.exit_code == 0, done.output
    assert "The network is that of skin, not of the preset paper." in done.output
    assert "ended after epoch 2 of 3" in done.output
    (following,) = [line for line in done.output.splitlines() if line.startswith("next: ")]
    assert run(*shlex.split(following)[2:]).exit_code == 0

    def cases(*words: object) -> set[str]:
        done = run("eval", *words, *where, "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        return {each["id"] for each in json.loads((tmp_path / "out" / "cases.json").read_text())}

    assert cases(out) == parts["test"]
    assert cases(out, "--split", "all") == parts["test"]
    assert cases("skin") == set().union(*parts.values())
    assert cases("skin", "--split", "folders") == parts["test"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data folder=a --data folder=b", "names folder twice"),
        ("--dataset ph2 --data folder=a", "write --data ph2=DIR"),
        ("--data folder=a --split ph2=all", "a split of ph2"),
        ("--dataset folder --data a --split k=3/fold.json", "a split of k"),
    ],
)
def test_data_and_splits_that_would_not_be_used_are_refused(words: str, said: str) -> None:
    pytest.importorskip("torch")
    done = run("train", "paper", *words.split(), "--out", "never")
    assert done.exit_code == 1
    assert said in done.output.replace("A split", "a split").replace("Write", "write")


def test_a_flat_folder_needs_a_split(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run("train", "paper", "--dataset", "folder", "--data", drawn, "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert "No pictures in train/." in done.output
    assert "ulvm data split" in done.output


def test_a_parent_that_is_not_there_is_named(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = ("--dataset", "folder", "--data", drawn, "--out", tmp_path / "run")
    done = run("train", "paper", *words, "--from", "gone.safetensors")
    assert "File not found: gone.safetensors" in done.output or "gone.safetensors" in done.output
    assert done.exit_code == 1
    done = run("train", "paper", *words, "--from", "skin", "--set", "model.widths=8,8,8,8,8,8")
    assert "the network is that of skin" in done.output.lower()


@pytest.mark.parametrize("name", ["run", "my run's"])
def test_ctrl_c_proposes_what_will_be_accepted(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / name
    words = ["train", "paper", "--dataset", "folder", "--data", drawn, "--split", "x.json"]
    words = [str(word) for word in [*words, "--out", out]]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ulvm.nn.train.train", interrupt)
    for resumed in (False, True):
        given = words + ["--resume"] * resumed
        monkeypatch.setattr(sys, "argv", ["ulvm", *given])
        stopped = run(*given)
        assert stopped.exit_code == 130
        assert "Stopped before the first checkpoint" in stopped.output
        assert shlex.split(stopped.output.partition("again with: ")[2]) == ["ulvm", *words]
    out.mkdir()
    (out / "checkpoint-before.pt").touch()
    stopped = run(*words)
    assert stopped.exit_code == 130
    again = shlex.split(stopped.output.partition("Continue with: ")[2])
    assert again == ["ulvm", *words, "--resume"]


def test_ctrl_c_in_another_command(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ulvm.datasets.check", interrupt)
    stopped = run("data", "check", "--dataset", "folder", "--data", drawn)
    assert (stopped.exit_code, stopped.output) == (130, "Stopped.\n")


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_that_an_import_turns_into_another_error(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's does, in the first seconds of a command."""

    def fail(*_: object) -> None:
        raise SystemError("bad call flags")

    def interrupted(then: Callable[[], None]) -> Callable[..., None]:
        def find(*_: object) -> None:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            then()

        return find

    def leave() -> None:
        raise click.exceptions.Exit(130)

    words = ("data", "split", "--dataset", "folder", "--data", drawn, "--out", drawn / "splits")
    for then, said in ((fail, "Stopped.\n"), (leave, "")):  # who leaves has said so
        monkeypatch.setattr("ulvm.datasets.find_pairs", interrupted(then))
        done = run(*words)
        assert (done.exit_code, done.stderr) == (130, said)
    monkeypatch.setattr("ulvm.datasets.find_pairs", fail)
    assert isinstance(run(*words).exception, SystemError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_picture_does_not_show_is_said_once(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    for name in ("a", "b"):
        Image.fromarray(samples).save(tmp_path / f"{name}.png")
    done = subprocess.run(
        [sys.executable, "-m", "ulvm", "predict", tmp_path, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    said = "Note: a 16-bit picture holds 12-bit samples: they are scaled by 4095, not 65535.\n"
    assert done.stderr == said


def test_inspect_prints_the_published_count() -> None:
    pytest.importorskip("torch")
    result = run("inspect", "paper", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["totals"]["parameters"] == 49_457
    assert "49,457" in run("inspect").output
    assert "of 64×64" in run("inspect", "paper", "--set", "data.image_size=64").output
    assert "of 32×32" in run("inspect", "--size", 32, "--set", "data.image_size=64").output


def test_presets_lists_every_row() -> None:
    from ulvm.presets import PRESETS

    assert len(run("presets").output.splitlines()) == len(PRESETS) + 1
