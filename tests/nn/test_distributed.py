"""Two processes on the CPU against one: the same weights, one writer, resumed by one."""

import dataclasses
import itertools
import json
import os
import socket
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


# Run by both: torchrun and torch's import take longer than what is tested. They meet once by
# torchrun's store, which knows them for one group; for each run after that at a port.
IN_TWO = """
import json, os, sys
import torch
from ulvm.cli import main
from ulvm.nn.distributed import join

commands, ports = json.loads(sys.argv[1])
main(commands[0], standalone_mode=False)
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
os.environ["MASTER_PORT"] = ports[0]
main(commands[1], standalone_mode=False)
os.environ["MASTER_PORT"] = ports[1]
with join(torch.device("cpu")) as processes:
    gradients = [torch.full((2, 3), processes.rank + 1.0), torch.arange(4.0) * processes.rank]
    processes.average(gradients)
    assert torch.equal(gradients[0], torch.full((2, 3), 1.5)), gradients
    assert torch.equal(gradients[1], torch.arange(4.0) / 2), gradients
print("averaged")
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class TwoProcesses:
    """What they did: a run of one epoch, a run that ended early, what was printed."""

    data: Path
    split: Path
    trained: Path
    ended: Path
    printed: str


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """Both runs by two processes that torchrun starts."""
    folder = tmp_path_factory.mktemp("two")
    # Batches of three, three and one: two pictures for one process and one for the other, at
    # last one and none.
    data = folder / "drawn"
    split = write_split_folder(data, seed=1, train=7, validation=2, test=1)
    still = ["train.learning_rate=0", "train.min_learning_rate=0", "train.patience=2"]
    commands = []
    for out, assignments in (
        ("trained", [*SMALL, "train.epochs=1"]),
        ("ended", [*still, "data.image_size=64", "train.epochs=9"]),
    ):
        words = ["train", "paper", "--dataset", "folder", "--data", data, "--split", split]
        words += ["--out", folder / out, "--device", "cpu"]
        for assignment in assignments:
            words += ["--set", assignment]
        commands.append([str(word) for word in words])
    script = folder / "both.py"
    script.write_text(IN_TWO)
    launch = "-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d"
    words = [*launch.split(), "--rdzv-endpoint=localhost:0", str(script)]
    words.append(json.dumps((commands, [free_port(), free_port()])))
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ULVM_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return TwoProcesses(data, split, folder / "trained", folder / "ended", done.stdout)


def test_two_processes_train_as_one(
    in_two: TwoProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))
    assert in_two.printed.count("best weights") == 2  # of each run once
    assert json.loads((in_two.trained / "run.json").read_text())["processes"] == 2
    assert len((in_two.trained / "metrics.jsonl").read_text().splitlines()) == 1

    def run_alone(folder: Path, *, resume: bool) -> dict[str, Any]:
        assignments = ["data.dataset=folder", f"data.split={in_two.split}", "train.epochs=2"]
        run = find_preset("paper").run.override([*SMALL, *assignments])
        train(run, in_two.data, folder, device="cpu", resume=resume, progress=False)
        return torch.load(folder / CHECKPOINT, weights_only=True)

    two = run_alone(in_two.trained, resume=True)
    one = run_alone(tmp_path / "one", resume=False)
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


def test_two_processes_end_early_together(in_two: TwoProcesses) -> None:
    assert in_two.printed.count("ended after epoch 3 of 9") == 1
    assert len((in_two.ended / "metrics.jsonl").read_text().splitlines()) == 3


def test_gradients_become_their_mean(in_two: TwoProcesses) -> None:
    assert in_two.printed.count("averaged") == 2


def test_one_process_averages_nothing() -> None:
    gradient = torch.ones(3)
    Processes().average([gradient])
    assert torch.equal(gradient, torch.ones(3))
