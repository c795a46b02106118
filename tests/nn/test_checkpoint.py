"""Weights on disk: there and back, the authors' files, and what other files are answered with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ulvm.errors import InputError
from ulvm.nn.checkpoint import (
    authors_names,
    load_authors_checkpoint,
    load_weights,
    model_from_authors,
    save_weights,
)
from ulvm.nn.model import UltraLightVMUNet
from ulvm.spec import DataSpec, ModelSpec, RunSpec, TrainSpec

GOLDEN = Path(__file__).parents[1] / "golden"
RUN = RunSpec(
    model=ModelSpec(branches=2, classes=3, mixer="bidirectional"),
    data=DataSpec(dataset="ph2", split="mine.json"),
    train=TrainSpec(seed=7, learning_rate=3e-3),
    threshold=0.4,
)


@pytest.fixture(scope="module")
def authors_state() -> dict[str, Tensor]:
    """The golden weights under the authors' names."""
    golden = load_file(GOLDEN / "authors_forward.safetensors")
    return {
        name.removeprefix("state."): value
        for name, value in golden.items()
        if name.startswith("state.")
    }


class NotATensor:
    """Something that only a full unpickling could make."""


# ulvm's own files


def test_round_trip_keeps_weights_run_and_provenance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UltraLightVMUNet(RUN.model)
    provenance = {"scores": {"dsc": 0.9, "é": None}, "split_sha256": "ab", "epochs": [1, 2]}
    path = tmp_path / "deep" / "weights.safetensors"
    save_weights(path, model, RUN, provenance)
    loaded, run, stored = load_weights(path)

    assert run == RUN
    assert stored == {"format": 1, **provenance}
    assert loaded.spec == RUN.model
    assert not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_loading_draws_nothing_that_changes_the_result(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, UltraLightVMUNet(), RunSpec(), {})
    picture = torch.rand(1, 3, 32, 32) * 255
    with torch.no_grad():
        assert torch.equal(load_weights(path)[0](picture), load_weights(path)[0](picture))


def test_file_is_plain_safetensors_with_the_run_as_json(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, UltraLightVMUNet(), RunSpec(), {})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["ulvm"])["run"] == RunSpec().to_dict()
    assert sum(tensor.numel() for tensor in load_file(path).values()) == 49_457


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError) as caught:
            load_weights(path)
        assert str(path) in caught.value.given
        with pytest.raises(InputError) as caught:
            load_authors_checkpoint(path)
        assert str(path) in caught.value.given


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"foreign\.safetensors holds no run of ulvm"):
        load_weights(path)


def test_other_content_is_no_safetensors(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_weights(whole, UltraLightVMUNet(), RunSpec(), {})
    for content in (b"", b"not weights at all", whole.read_bytes()[:5000]):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"broken\.safetensors cannot be read as safetensors"):
            load_weights(path)


# The authors' names


def test_names_and_shapes_are_the_authors() -> None:
    shapes = json.loads((GOLDEN / "authors_state_dict.json").read_text(encoding="utf-8"))
    table = authors_names(ModelSpec())
    ours = UltraLightVMUNet().state_dict()
    assert set(table) == set(ours)
    assert {table[name]: list(value.shape) for name, value in ours.items()} == shapes
    assert len(shapes) == 129


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(encoder=("conv",) * 6),
        ModelSpec(decoder=("pvm",) * 5, branches=8),
    ],
    ids=["conv-encoder", "pvm-decoder"],
)
def test_names_cover_other_stages(spec: ModelSpec) -> None:
    table = authors_names(spec)
    assert set(table) == set(UltraLightVMUNet(spec).state_dict())
    assert len(set(table.values())) == len(table)


# The authors' files


def as_saved(state: dict[str, Tensor]) -> Any:
    return state


def as_data_parallel(state: dict[str, Tensor]) -> Any:
    return {f"module.{name}": value for name, value in state.items()}


def as_counted_by_thop(state: dict[str, Tensor]) -> Any:
    counts = {
        "total_ops": torch.zeros(1),
        "total_params": torch.zeros(1),
        "encoder1.0.total_ops": torch.zeros(1),
        "scab.satt.total_params": torch.zeros(1),
    }
    return {**state, **counts}


def as_best_of_both(state: dict[str, Tensor]) -> Any:
    return as_data_parallel(as_counted_by_thop(state))


def as_latest(state: dict[str, Tensor]) -> Any:
    """What the released train.py writes after each epoch."""
    return {
        "epoch": 3,
        "min_loss": np.mean([0.1, 0.2]),  # a numpy float, as the released code has it
        "min_epoch": 2,
        "loss": np.mean([0.3, 0.2]),
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        "scheduler_state_dict": {"T_max": 50, "_last_lr": [1e-3]},
    }


@pytest.mark.parametrize(
    "saved", [as_saved, as_data_parallel, as_counted_by_thop, as_best_of_both, as_latest]
)
def test_authors_files(saved: Any, authors_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(saved(authors_state), path)
    model = load_authors_checkpoint(path)
    assert not model.training
    assert model.spec == ModelSpec()
    table = authors_names(ModelSpec())
    for name, value in model.state_dict().items():
        assert torch.equal(value, authors_state[table[name]]), name


def test_authors_file_of_the_old_format(authors_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(authors_state, path, _use_new_zipfile_serialization=False)
    loaded = load_authors_checkpoint(path).state_dict()
    assert torch.equal(loaded["head.weight"], authors_state["final.weight"])


def test_numpy_float_of_numpy_1(authors_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    torch.save(as_latest(authors_state), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"cnumpy.core.multiarray\n" in content
    path.write_bytes(content)
    load_authors_checkpoint(path)


def test_a_pickled_object_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": NotATensor()}, path)
    with pytest.raises(InputError, match=r"model\.pth cannot be read as weights\. .* tensors only"):
        load_authors_checkpoint(path)
    torch.save(UltraLightVMUNet(), path)
    with pytest.raises(InputError, match="Save the state dict of that object"):
        load_authors_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 and no archive"])
def test_other_content_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.pth cannot be read as weights"):
        load_authors_checkpoint(path)


def test_cut_off_checkpoint(authors_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(authors_state, path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(InputError, match=r"cut\.pth cannot be read as weights"):
        load_authors_checkpoint(path)


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(InputError, match=r"list\.pth holds a list\. It must hold a state dict"):
        load_authors_checkpoint(path)


def test_missing_and_unknown_tensors_are_named(authors_state: dict[str, Tensor]) -> None:
    lacking = {name: value for name, value in authors_state.items() if name != "final.bias"}
    with pytest.raises(InputError, match=r"lacks final\.bias\. .* 129 tensors"):
        model_from_authors(lacking)
    with pytest.raises(InputError, match=r"has unknown tensors extra\. .* 129 tensors"):
        model_from_authors({**authors_state, "extra": torch.zeros(1)})
    with pytest.raises(InputError, match="lacks"):
        model_from_authors({"conv1.weight": torch.zeros(1)})


def test_other_shapes_are_named(authors_state: dict[str, Tensor]) -> None:
    wider = {**authors_state, "final.weight": torch.zeros(1, 16, 1, 1)}
    with pytest.raises(InputError, match=r"final\.weight of shape \(1, 16, 1, 1\), not \(1, 8, "):
        model_from_authors(wider)


# Files that were changed


def changed_weights(path: Path, header: Any = None, **metadata: Any) -> Path:
    """Small weights with another header or other metadata."""
    save_weights(path, UltraLightVMUNet(), RunSpec(), {})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:end])
    if header:
        header(table)
    stored = json.loads(table["__metadata__"]["ulvm"]) | metadata
    stored = {name: value for name, value in stored.items() if value is not None}
    table["__metadata__"]["ulvm"] = json.dumps(stored)
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return path


def rename(table: dict[str, Any]) -> None:
    table["other"] = table.pop("head.bias")


def as_integers(table: dict[str, Any]) -> None:
    table["head.bias"]["dtype"] = "I32"


WIDE = {"model": {"widths": [400_000_000] * 6}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": None}, "holds no run of ulvm"),
        ({"run": 3}, "holds no run of ulvm"),
        ({"format": 99}, "has model format 99"),
        ({"header": rename}, r"lacks head\.bias"),
        ({"header": as_integers}, r"head\.bias of type torch\.int32"),
        ({"run": {"model": {"widths": [8, 16, 24, 32, 48, 68]}}}, "of shape"),
        ({"run": WIDE}, "up to 4096"),
        ({"run": {"model": {"paralel": 2}}}, "no field 'paralel'"),
    ],
)
def test_changed_weights_are_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_weights(changed_weights(tmp_path / "w.safetensors", **changes))


def test_metadata_that_are_no_json_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"ulvm": "{"})
    with pytest.raises(InputError, match="holds no run of ulvm"):
        load_weights(path)
    model = UltraLightVMUNet()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    save_weights(path, model, RunSpec(), {})
    with pytest.raises(InputError, match=r"number in head\.bias that is not finite"):
        load_weights(path)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model.module."])
def test_wrapped_checkpoints_of_the_authors(
    tmp_path: Path, authors_state: dict[str, Tensor], wrapper: str, prefix: str
) -> None:
    path = tmp_path / "c.pth"
    state = {prefix + name: value for name, value in authors_state.items()}
    numbers = {"loss": np.float32(0.5), "epoch": np.int64(3)}
    torch.save({wrapper: {"state_dict": state} if wrapper == "net" else state, **numbers}, path)
    load_authors_checkpoint(path)


def test_checkpoints_of_the_authors_with_other_values(
    tmp_path: Path, authors_state: dict[str, Tensor]
) -> None:
    path = tmp_path / "c.pth"
    bias = authors_state["final.bias"]
    for value in (bias * torch.nan, bias.int(), bias.to_sparse(), 3, None, bias.to("meta")):
        torch.save({**authors_state, "final.bias": value}, path)
        with pytest.raises(InputError):
            load_authors_checkpoint(path)
    torch.save({**authors_state, 7: bias}, path)
    with pytest.raises(InputError, match="unknown tensors 7"):
        load_authors_checkpoint(path)


def test_changed_pickles_raise_nothing_else(tmp_path: Path) -> None:
    """Old pickles, of which each byte tells the reader what to do."""
    path = tmp_path / "c.pth"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load_authors_checkpoint(path)
