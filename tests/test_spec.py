"""Specs: JSON there and back, typed overrides, and what each mistake is answered with."""

import dataclasses
import json
import math
from typing import Any

import pytest

from ulvm.errors import InputError
from ulvm.spec import DataSpec, ModelSpec, RunSpec, SourceSpec, TrainSpec, require_divisible

# A value other than the default for every field of every spec.
OTHER_MODEL = ModelSpec(
    in_channels=4,
    classes=3,
    widths=(8, 8, 16, 16, 24, 32),
    encoder=("conv", "conv", "pvm", "pvm", "conv", "pvm"),
    decoder=("pvm", "conv", "pvm", "conv", "pvm"),
    branches=2,
    d_state=8,
    d_conv=3,
    expand=1,
    mixer="ss2d",
    bridge="channel",
    init="mamba",
)
OTHER_DATA = DataSpec(
    dataset="ph2",
    split="splits/mine.json",
    image_size=128,
    more=(SourceSpec(dataset="pad-ufes", split="skin", weight=2.0),),
)
OTHER_TRAIN = TrainSpec(
    epochs=3,
    batch_size=2,
    learning_rate=3e-3,
    min_learning_rate=1e-6,
    weight_decay=0.05,
    schedule="one-cycle",
    period_epochs=7,
    warmup_epochs=1,
    augmentation="strong",
    lesion_free=0.1,
    pasted=0.5,
    teacher_share=0.5,
    average_decay=0.9,
    patience=4,
    precision="bfloat16",
    seed=1,
)
OTHER_RUN = RunSpec(model=OTHER_MODEL, data=OTHER_DATA, train=OTHER_TRAIN, threshold=0.25)
SPECS = [
    *(ModelSpec(), DataSpec(), TrainSpec(), RunSpec()),
    *(OTHER_MODEL, OTHER_DATA, OTHER_TRAIN, OTHER_RUN),
]


def test_the_other_specs_differ_in_every_field() -> None:
    for default, other in zip(SPECS[:4], SPECS[4:], strict=True):
        for field in dataclasses.fields(default):
            if field.name == "network":  # which takes no other values beside it
                continue
            assert getattr(default, field.name) != getattr(other, field.name), field.name


@pytest.mark.parametrize(
    "spec", [*SPECS, ModelSpec(network="unet")], ids=lambda spec: type(spec).__name__
)
def test_json_round_trip(spec: Any) -> None:
    text = json.dumps(spec.to_dict(), allow_nan=False)
    assert type(spec).from_dict(json.loads(text)) == spec


def test_json_holds_every_field_and_plain_values_only() -> None:
    values = RunSpec().to_dict()
    assert set(values) == {"model", "data", "train", "threshold"}
    assert values["model"]["widths"] == [8, 16, 24, 32, 48, 64]
    assert values["train"]["learning_rate"] == 1e-3


def test_missing_fields_get_their_defaults() -> None:
    assert RunSpec.from_dict({"train": {"epochs": 2}}) == RunSpec(train=TrainSpec(epochs=2))
    assert RunSpec.from_dict({}) == RunSpec()


def test_defaults_are_the_authors_recipe() -> None:
    train = TrainSpec()
    assert (train.epochs, train.batch_size, train.seed) == (250, 8, 42)
    assert (train.learning_rate, train.min_learning_rate) == (1e-3, 1e-5)
    assert (train.weight_decay, train.period_epochs, train.warmup_epochs) == (1e-2, 50, 0)
    assert (DataSpec().image_size, RunSpec().threshold) == (256, 0.5)


def test_specs_are_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunSpec().threshold = 0.1  # type: ignore[misc]
    assert len({RunSpec(), RunSpec(), OTHER_RUN}) == 2


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.epochs=100", 100),
        (" train.epochs = 100 ", 100),
        ("train.learning_rate=3e-4", 3e-4),
        ("train.learning_rate=1", 1.0),
        ("threshold=0.25", 0.25),
        ("model.widths=[8, 8, 8, 8, 8, 16]", (8, 8, 8, 8, 8, 16)),
        ("model.encoder=conv,conv,conv,conv,pvm,pvm", ("conv",) * 4 + ("pvm",) * 2),
        ('model.encoder=["conv","conv","conv","pvm","pvm","pvm"]', ModelSpec().encoder),
        ("model.mixer=ss2d", "ss2d"),
        ('model.mixer="ss2d"', "ss2d"),
        ("data.split=fold-3", "fold-3"),
        ("data.split=2017", "2017"),
        ("data.split=007", "007"),
        ("data.split=null", "null"),
        ('data.split="a b"', "a b"),
        ("data.split=a,b=c.json", "a,b=c.json"),
    ],
)
def test_override_gives_the_type_of_the_field(assignment: str, expected: Any) -> None:
    path = assignment.split("=")[0].strip().split(".")
    value: Any = RunSpec().override([assignment])
    for name in path:
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_override_changes_nothing_else_and_leaves_the_original() -> None:
    run = RunSpec()
    changed = run.override(["model.branches=2", "train.seed=7", "model.d_state=8"])
    assert changed == RunSpec(model=ModelSpec(branches=2, d_state=8), train=TrainSpec(seed=7))
    assert run == RunSpec()
    assert run.override([]) == run
    assert ModelSpec().override(["branches=8"]) == ModelSpec(branches=8)


def test_specs_from_before_other_networks_are_of_our_own() -> None:
    stored = ModelSpec(branches=2).to_dict()
    del stored["network"]
    assert ModelSpec.from_dict(stored).network == "ultralight-vm-unet"


def test_another_papers_network_takes_no_other_values() -> None:
    assert ModelSpec().override(["network=unet"]) == ModelSpec(network="unet")
    message = (
        r"ModelSpec\.classes=2 does not fit network='unet'. It must be 1,.* Leave out classes, or"
    )
    with pytest.raises(InputError, match=message):
        ModelSpec(network="unet", classes=2)
    with pytest.raises(InputError, match="one of ultralight-vm-unet, unet, ege-unet"):
        ModelSpec(network="segnet")  # type: ignore[arg-type]


def test_override_of_a_whole_part_is_json() -> None:
    changed = RunSpec().override(['train={"epochs": 3}'])
    assert changed.train == TrainSpec(epochs=3)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        (
            "model.branchs=2",
            "No field 'branchs' in ModelSpec. Choose from network, in_channels, classes, widths, "
            "encoder, decoder, branches, d_state, d_conv, expand, mixer, bridge, init. "
            "Did you mean 'branches'?",
        ),
        (
            "zzz=1",
            "No field 'zzz' in RunSpec. Choose from model, data, train, threshold.",
        ),
        (
            "train.epochs",
            "--set 'train.epochs' has no '='. It must be field=value, such as train.epochs=100. "
            "Write the value after an equals sign.",
        ),
        (
            "threshold.low=1",
            "RunSpec.threshold has no parts. Write threshold=value, without '.low'.",
        ),
        (
            "model=paper",
            "RunSpec.model='paper' does not fit. It must be a table with the fields of ModelSpec.",
        ),
        (
            "train.epochs=many",
            "TrainSpec.epochs='many' does not fit. It must be of type int.",
        ),
        (
            "train.epochs=1.5",
            "TrainSpec.epochs=1.5 does not fit. It must be of type int.",
        ),
        (
            "train.epochs=true",
            "TrainSpec.epochs=True does not fit. It must be of type int.",
        ),
        (
            "train.learning_rate=true",
            "TrainSpec.learning_rate=True does not fit. It must be of type float.",
        ),
        (
            "threshold=.25",  # no JSON number
            "RunSpec.threshold='.25' does not fit. It must be of type float.",
        ),
        (
            "model.widths=8",
            "ModelSpec.widths=8 does not fit. It must be a list, such as 8,16,24.",
        ),
        (
            'model.widths=[8,16,24,32,48,"64"]',
            "ModelSpec.widths='64' does not fit. It must be of type int.",
        ),
        (
            "model.mixer=mambo",
            "ModelSpec.mixer='mambo' does not fit. It must be one of mamba, bidirectional, ss2d.",
        ),
        (
            "model.encoder=conv,conv,conv,pvm,pvm,attention",
            "ModelSpec.encoder='attention' does not fit. It must be one of conv, pvm.",
        ),
        (
            "data.image_size=100",
            "DataSpec.image_size is 100×100. Height and width must be multiples of 32. "
            "The nearest are 96×96 and 128×128.",
        ),
    ],
)
def test_override_mistakes(assignment: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        RunSpec().override([assignment])
    assert str(caught.value) == sentence


def test_unknown_fields_in_json_are_named_at_any_depth() -> None:
    with pytest.raises(InputError, match=r"No field 'epoch' in TrainSpec. .* mean 'epochs'"):
        RunSpec.from_dict({"train": {"epoch": 3}})


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (ModelSpec, {"bridge": "spatail"}),
        (ModelSpec, {"encoder": ("conv", "conf", "conv", "pvm", "pvm", "pvm")}),
        (ModelSpec, {"branches": "4"}),
        (DataSpec, {"split": 3}),
        (DataSpec, {"split": None}),
        (RunSpec, {"model": None}),
        (RunSpec, {"train": DataSpec()}),
    ],
)
def test_types_are_checked_when_made_in_python_and_from_json(
    spec: Any, values: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="does not fit"):
        spec(**values)
    with pytest.raises(InputError, match="does not fit"):
        spec.from_dict(values)


def test_lists_become_tuples() -> None:
    widths: Any = [8, 16, 24, 32, 48, 64]
    assert ModelSpec(widths=widths) == ModelSpec()


@pytest.mark.parametrize(
    ("spec", "values", "words"),
    [
        (ModelSpec, {"in_channels": 0}, "ModelSpec.in_channels=0 .* It must be 1 or more"),
        (ModelSpec, {"classes": 0}, "ModelSpec.classes=0 "),
        (ModelSpec, {"branches": 0}, "ModelSpec.branches=0 "),
        (ModelSpec, {"d_state": 0}, "ModelSpec.d_state=0 "),
        (ModelSpec, {"d_conv": 0}, "ModelSpec.d_conv=0 "),
        (ModelSpec, {"expand": -1}, "ModelSpec.expand=-1 "),
        (ModelSpec, {"widths": (8, 16)}, "widths has 2 entries. It must have 6"),
        (ModelSpec, {"encoder": ("conv",) * 5}, "encoder has 5 entries. It must have 6"),
        (ModelSpec, {"decoder": ("conv",) * 6}, "decoder has 6 entries. It must have 5"),
        (ModelSpec, {"widths": (8, 16, 24, 32, 48, 66)}, "widths holds 66. .* multiples of 4"),
        (ModelSpec, {"widths": (0, 16, 24, 32, 48, 64)}, "widths holds 0\\."),
        (ModelSpec, {"branches": 5}, "branches=5 does not divide a PVM stage's 24 input channels"),
        (ModelSpec, {"encoder": ("pvm",) * 6}, "branches=4 does not divide .* 3 input channels"),
        (DataSpec, {"image_size": 0}, "The nearest are 32×32"),
        (DataSpec, {"image_size": 250}, "The nearest are 224×224 and 256×256"),
        (TrainSpec, {"epochs": 0}, "TrainSpec.epochs=0 "),
        (TrainSpec, {"batch_size": 0}, "TrainSpec.batch_size=0 "),
        (TrainSpec, {"period_epochs": 0}, "TrainSpec.period_epochs=0 "),
        (TrainSpec, {"learning_rate": -1e-3}, "TrainSpec.learning_rate=-0.001 .* 0 or more"),
        (TrainSpec, {"learning_rate": math.nan}, "TrainSpec.learning_rate=nan "),
        (TrainSpec, {"learning_rate": math.inf}, "TrainSpec.learning_rate=inf "),
        (TrainSpec, {"min_learning_rate": -1}, "TrainSpec.min_learning_rate=-1.0 "),
        (TrainSpec, {"weight_decay": -1}, "TrainSpec.weight_decay=-1.0 "),
        (TrainSpec, {"warmup_epochs": -1}, "TrainSpec.warmup_epochs=-1 "),
        (TrainSpec, {"seed": -1}, "TrainSpec.seed=-1 "),
        (TrainSpec, {"average_decay": 1.0}, "average_decay=1.0 .* 0 ≤ average_decay < 1"),
        (TrainSpec, {"average_decay": -0.1}, "average_decay=-0.1 "),
        (TrainSpec, {"average_decay": math.nan}, "average_decay=nan "),
        (RunSpec, {"threshold": 0.0}, "threshold=0.0 .* between 0 and 1"),
        (RunSpec, {"threshold": 1.0}, "threshold=1.0 "),
        (RunSpec, {"threshold": math.nan}, "threshold=nan "),
    ],
)
def test_out_of_range(spec: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        spec(**values)


def test_pvm_anywhere_where_branches_divide_the_input() -> None:
    every = ModelSpec(in_channels=4, encoder=("pvm",) * 6, decoder=("pvm",) * 5)
    assert every.branches == 4


@pytest.mark.parametrize("size_hw", [(32, 32), (64, 96), (256, 256), (1024, 32)])
def test_divisible_sizes_pass(size_hw: tuple[int, int]) -> None:
    require_divisible(size_hw)


@pytest.mark.parametrize(
    ("size_hw", "nearest"),
    [
        ((100, 130), "96×128 and 128×160"),
        ((33, 64), "32×64 and 64×64"),
        ((5, 5), "32×32"),
        ((0, 64), "32×64"),
    ],
)
def test_other_sizes_are_refused_with_the_nearest(size_hw: tuple[int, int], nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        require_divisible(size_hw, "picture")
    assert caught.value.given == f"picture is {size_hw[0]}×{size_hw[1]}"
    assert caught.value.remedy == f"the nearest are {nearest}"


def test_assignments_are_made_together_whatever_their_order() -> None:
    """Half-way the network is another paper's with an init of ours, which is refused."""
    for order in (
        ["model.network=unet", "model.init=paper"],
        ["model.init=paper", "model.network=unet"],
    ):
        model = RunSpec(model=ModelSpec(init="mamba")).override(order).model
        assert (model.network, model.init) == ("unet", "paper")
    wide = ["model.branches=3", "model.widths=12,12,12,12,12,12"]
    assert RunSpec().override(wide) == RunSpec().override(wide[::-1])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.epochs=" + "7" * 5000, "TrainSpec.epochs=.{1,120} does not fit"),
        ("train.epochs=" + "7" * 400, "TrainSpec.epochs=.{1,120} at most 1000000"),
        ("train.learning_rate=" + "7" * 400, "TrainSpec.learning_rate=inf"),
        ("model.widths=" + "[" * 50_000, "ModelSpec.widths=.{1,120} does not fit"),
        ("model.widths=" + "[" * 300 + "]" * 300, "ModelSpec.widths=.{1,120} does not fit"),
        ("model.widths=8,16,24,32,48,40000000", "multiples of 4 up to 4096"),
        ("train.seed=1180591620717411303424", "at most 9223372036854775807"),
        ("train.batch_size=10000000000", "at most 1000000"),
        ("data.image_size=3200000", "at most 4096"),
        ("model.d_state=99999999", "at most 1024"),
    ],
)
def test_values_beyond_all_measure_are_a_short_sentence(assignment: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        RunSpec().override([assignment])
    assert len(str(raised.value)) < 250


def test_a_field_is_given_as_a_whole_or_in_parts() -> None:
    both = ['model={"d_state": 8}', "model.expand=3"]
    for order in (both, both[::-1]):
        with pytest.raises(InputError, match="--set gives model as a whole and in parts"):
            RunSpec().override(order)
