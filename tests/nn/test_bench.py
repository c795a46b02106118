"""The GPU benchmarks: their arithmetic anywhere, a recorded step where there is a GPU."""

from __future__ import annotations

import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import cpu
import inference
import measure
import predict
import schedule
import train_cpu
import train_step
from ulvm.cli import main
from ulvm.nn.augment import Part
from ulvm.nn.checkpoint import load_probability, load_weights
from ulvm.nn.model import normalise
from ulvm.presets import find_preset


def test_peak_memory_sees_what_was_freed_again() -> None:
    little = predict.peak_memory("-c", "import time; time.sleep(0.1)")
    much = predict.peak_memory("-c", "import time; b'1' * 10**8; time.sleep(0.1)")
    assert 95 <= much - little <= 110


def test_the_timed_prediction_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    interpreter, package, name, *arguments = predict.command(tmp_path / "photo.jpg", tmp_path)
    context = main.commands[name].make_context(name, arguments)
    assert (interpreter, package) == ("-m", "ulvm")
    assert context.params["paths"] == (str(tmp_path / "photo.jpg"),)


def test_spread_is_numpys() -> None:
    durations = [3.0, 1.0, 2.0, 10.0, 4.0, 4.5]
    found = measure.spread(durations)
    expected = np.percentile(durations, [0, 25, 50, 75, 100])
    names = ("min_ms", "q1_ms", "median_ms", "q3_ms", "max_ms")
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-4)
    assert found["n"] == 6


def test_blocks_take_turns_and_only_repeats_are_timed() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = measure.time_interleaved(runs, rounds=2, repeats=3, wait=lambda: None)
    blocks = [(name, len(list(group))) for name, group in itertools.groupby(calls)]
    assert blocks == [("a", measure.WARM_UP + 3), ("b", measure.WARM_UP + 3)] * 2
    assert [len(each) for each in times.values()] == [6, 6]


def test_a_round_ends_with_its_repeats_or_its_time() -> None:
    assert len(measure.time_block(lambda: None, 4, math.inf)) == 4
    assert len(measure.time_block(lambda: time.sleep(0.02), 1000, 0.1)) <= 5
    (long,) = measure.time_block(lambda: time.sleep(0.05), 1000, 0.01)
    assert long >= 50


def test_rounds_take_turns_on_a_cpu_too() -> None:
    calls: list[str] = []
    runs = [lambda name=name: calls.append(name) for name in ("a", "b")]
    times = cpu.time_rounds(runs, 2, 3, 0)  # each once to warm up, once timed
    assert calls == ["a", "a", "b", "b"] * 2
    assert [[len(block) for block in blocks] for blocks in times] == [[1, 1]] * 2


def test_the_fastest_round_is_told_from_all() -> None:
    assert cpu.summarise([[5.0, 9.0, 7.0], [1.0, 4.0]]) == {
        "n": 5,
        "minimum_ms": 1.0,
        "median_ms": 5.0,
        "lowest_round_ms": 2.5,
        "highest_round_ms": 7.0,
    }


def test_steps_on_a_cpu_are_counted_over_epochs_without_the_first() -> None:
    images, masks = measure.draw_pictures(3)
    part = Part(images.permute(0, 3, 1, 2)[..., ::8, ::8].contiguous(), masks[..., ::8, ::8].byte())
    run = find_preset("paper").run.override(["train.batch_size=2", "data.image_size=32"])
    durations = train_cpu.time_steps(run, part, count=4)
    assert len(durations) == 4
    assert all(0 < each < 60_000 for each in durations)


def test_kernels_are_summed_per_run() -> None:
    events = [("void add", 1.0), ("scan", 5.0), ("void add", 2.0), ("scan", 7.0)]
    rows = measure.sum_kernels(events, runs=2)
    assert rows == [
        {"name": "scan", "count": 1.0, "us": 6.0},
        {"name": "add", "count": 1.0, "us": 1.5},
    ]
    summary = measure.summarise_kernels(rows, shown=1)
    assert (summary["kernels"], summary["busy_us"], summary["others_us"]) == (2, 7.5, 1.5)


def test_without_a_gpu_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        measure.require_gpu()


def test_pictures_repeat_beyond_those_drawn() -> None:
    images, masks = measure.draw_pictures(3, drawn=2)
    assert images.shape == (3, measure.SIZE, measure.SIZE, 3)
    assert masks.shape == (3, measure.SIZE, measure.SIZE)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    assert 0 < masks.mean() < 1


def test_agreement_of_masks_by_hand() -> None:
    reference = np.zeros((2, 4, 4), bool)
    reference[:, :2] = True  # 8 pixels each
    masks = reference.copy()
    masks[1, 0, 0] = False
    found = inference.agreement(masks, reference, ["a", "b"])
    assert found["pooled_dice"] == pytest.approx(2 * 15 / 31)
    assert found["lowest_dice"] == pytest.approx(2 * 7 / 15)
    assert (found["lowest_id"], found["changed_pixels"]) == ("b", 1)


def test_masks_are_those_of_the_weights_file(monkeypatch: pytest.MonkeyPatch) -> None:
    # The benchmark sets it; this sets it back.
    monkeypatch.setattr("ulvm.nn.kernels.device.enabled", True)
    network = load_weights(inference.WEIGHTS)[0]
    images_rgb = measure.draw_pictures(2)[0].numpy()
    expected = load_probability(inference.WEIGHTS)[0](images_rgb)[:, 0] >= 0.5
    exact = inference.predict_masks(network, images_rgb, "float32", 0.5)
    assert np.array_equal(exact, expected)
    rough = inference.predict_masks(network, images_rgb, "bfloat16", 0.5)
    assert 0.9 < inference.agreement(rough, exact, ["a", "b"])["pooled_dice"] < 1


def test_a_command_is_split_where_its_run_folder_appears(tmp_path: Path) -> None:
    out_dir = tmp_path / "run"
    script = (
        "import pathlib, time; time.sleep(.2); out = pathlib.Path('run'); out.mkdir();"
        "(out / 'run.json').touch(); time.sleep(.3)"
    )
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {script}"]
    times = schedule.time_command(command, out_dir, {})
    assert times["start_up_s"] >= 0.2
    assert times["wall_s"] >= times["start_up_s"] + 0.25


def test_a_failing_command_ends_the_benchmark_with_its_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no data there')"]
    with pytest.raises(SystemExit, match="no data there"):
        schedule.time_command(command, tmp_path / "run", {})


def test_a_schedule_is_split_and_the_best_epoch_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,train_loss,validation_loss,validation_dsc_pooled,images_per_second,seconds\n"
        "1,1.0,0.9,0.7,1000,3.0\n2,0.8,0.5,0.8,5000,0.5\n3,0.7,0.6,0.85,6000,0.4\n"
    )
    rows = schedule.read_metrics(path)
    found = schedule.summarise({"wall_s": 10.0, "start_up_s": 5.5}, rows)
    assert (found["first_epoch_s"], found["rest_s"], found["epoch_median_s"]) == (3.0, 1.5, 0.5)
    assert (found["best"]["epoch"], found["last"]["epoch"]) == (2, 3)
    assert found["best"]["validation_dsc_pooled"] == 0.8


def test_the_timed_command_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    name, *arguments = schedule.arguments(tmp_path, tmp_path / "run", 7)
    context = main.commands[name].make_context(name, arguments)
    assert context.params["preset"] == "paper"
    assert context.params["assignments"] == ("train.epochs=7",)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_recorded_step_repeats_bit_for_bit_and_is_that_of_plain_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ulvm.nn.kernels.device.enabled", True)
    pictures, masks = (each.cuda() for each in measure.draw_pictures(4))
    images: Tensor = normalise(pictures.permute(0, 3, 1, 2))
    assert train_step.gives_same_bits(images, masks)
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours = train_step.Step(images, masks, kernels=True)
        plain = train_step.Step(images, masks, kernels=False)
    assert ours.first_loss == pytest.approx(plain.first_loss, rel=1e-4)
