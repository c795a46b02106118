"""Two processes on the CPU against one: the same weights, one writer, resumed by one."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from made_up_folders import write_split_folder
from ulvm.errors import InputError
from ulvm.nn.distributed import Processes, choose_device, launched
from ulvm.nn.run_folder import CHECKPOINT
from ulvm.nn.train import train
from ulvm.presets import find_preset


@pytest.mark.parametrize("pictures", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_the_batch_once_and_as_equal_as_possible(pictures: int, count: int) -> None:
    shares = [list(Processes(rank, count).share(pictures)) for rank in range(count)]
    assert list(itertools.chain(*shares)) == list(range(pictures))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_unknown_device_is_named() -> None:
    for name in ("abacus", "meta", "cpu:x", "cuda:4096", "-1"):
        with pytest.raises(InputError, match=f"'{name}' cannot be used"):
            choose_device(name)


def test_torchrun_shares_out_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == Processes(0, 1)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(1, 2)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="Under torchrun it must be auto, cuda or cpu"):
        choose_device("cuda:0")


# The smaller the rate, the less AdamW makes of the rounding of gradients near zero.
SMALL = ["data.image_size=64", "train.batch_size=3", "train.learning_rate=3e-5"]
SMALL += ["train.average_decay=0.9"]


def run_in_two(*words: str | Path) -> str:
    """What two processes print that torchrun starts."""
    launch = "-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d"
    done = subprocess.run(
        [sys.executable, *launch.split(), "--rdzv-endpoint=localhost:0", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_in_two(data_dir: Path, split: Path, out_dir: Path, *assignments: str) -> str:
    words = ["-m", "ulvm", "train", "paper", "--dataset", "folder", "--data", data_dir]
    words += ["--split", split, "--out", out_dir, "--device", "cpu"]
    for assignment in assignments:
        words += ["--set", assignment]
    return run_in_two(*words)


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / "drawn"
    # Batches of three, three and one: two pictures for one process and one for the other, at
    # last one and none.
    split = write_split_folder(data_dir, seed=1, train=7, validation=2, test=1)
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))

    printed = train_in_two(data_dir, split, tmp_path / "two", *SMALL, "train.epochs=1")
    assert printed.count("best weights") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 1

    def run_alone(out: str, epochs: int, *, resume: bool = False) -> dict[str, Any]:
        assignments = ["data.dataset=folder", f"data.split={split}", f"train.epochs={epochs}"]
        run = find_preset("paper").run.override([*SMALL, *assignments])
        folder = tmp_path / out
        train(run, data_dir, folder, device="cpu", resume=resume, progress=False)
        return torch.load(folder / CHECKPOINT, weights_only=True)

    two, one = run_alone("two", 2, resume=True), run_alone("one", 2)
    for name in ("model", "averaged"):
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    # AdamW's first moments are sums of gradients, so they show how the shares were weighted.
    moments = [
        torch.cat([each["exp_avg"].flatten() for each in stored["optimizer"]["state"].values()])
        for stored in (two, one)
    ]
    assert (moments[0] - moments[1]).abs().max() < 1e-4 * moments[1].abs().max()
    assert torch.equal(two["generator"], one["generator"])
    for name in ("train_loss", "validation_loss"):
        losses = [[row[name] for row in each["history"]] for each in (two, one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_end_early_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))
    data_dir = tmp_path / "drawn"
    split = write_split_folder(data_dir, seed=1, train=4, validation=1)
    still = ["train.learning_rate=0", "train.min_learning_rate=0"]
    few = ["data.image_size=64", "train.epochs=9", "train.patience=2"]
    printed = train_in_two(data_dir, split, tmp_path / "run", *few, *still)
    assert printed.count("ended after epoch 3 of 9") == 1


AVERAGE = """
import sys
import torch
import torch.distributed as dist
from ulvm.nn.distributed import join

with join(torch.device("cpu")) as processes:
    gradients = [torch.full((2, 3), processes.rank + 1.0), torch.arange(4.0) * processes.rank]
    processes.average(gradients)
    assert torch.equal(gradients[0], torch.full((2, 3), 1.5)), gradients
    assert torch.equal(gradients[1], torch.arange(4.0) / 2), gradients
print("averaged")
"""


def test_gradients_become_their_mean(tmp_path: Path) -> None:
    script = tmp_path / "average.py"
    script.write_text(AVERAGE)
    assert run_in_two(script).count("averaged") == 2


def test_one_process_averages_nothing() -> None:
    gradient = torch.ones(3)
    Processes().average([gradient])
    assert torch.equal(gradient, torch.ones(3))
