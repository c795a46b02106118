"""Presets against the figures that the paper prints and the counts of the authors' code."""

from typing import get_args

import pytest

from ulvm.errors import InputError
from ulvm.presets import PLUS_MODEL, PRESETS, SMALL_MODEL, find_preset
from ulvm.spec import ModelSpec, Network, RunSpec, TrainSpec

CONV_ENCODER = ("conv",) * 6
CONV_DECODER = ("conv",) * 5

# Counted on the authors' network built with these choices.
COUNTS = {
    ModelSpec(): 49_457,
    ModelSpec(init="mamba"): 49_457,
    ModelSpec(branches=1): 136_269,
    ModelSpec(branches=2): 69_589,
    ModelSpec(branches=8): 42_737,
    ModelSpec(bridge="none"): 32_843,
    ModelSpec(bridge="channel"): 49_358,
    ModelSpec(bridge="spatial"): 32_942,
    ModelSpec(encoder=CONV_ENCODER): 87_826,
    ModelSpec(decoder=CONV_DECODER): 85_286,
    ModelSpec(encoder=CONV_ENCODER, decoder=CONV_DECODER): 123_655,
    ModelSpec(d_state=4): 44_993,
    ModelSpec(d_state=8): 46_481,
    ModelSpec(d_state=32): 55_409,
    ModelSpec(d_state=64): 67_313,
    ModelSpec(d_conv=2): 49_209,
    ModelSpec(d_conv=3): 49_333,
    ModelSpec(expand=1): 43_799,
    ModelSpec(expand=3): 55_115,
    ModelSpec(expand=4): 60_773,
}
# Counted on our own network, and on the peers, whose published counts tests/nn/test_peers.py has.
OWN_COUNTS = {
    ModelSpec(widths=(4, 8, 12, 16, 24, 32)): 14_633,
    ModelSpec(widths=(4, 4, 8, 8, 12, 16)): 5_581,
    ModelSpec(mixer="bidirectional"): 56_525,
    ModelSpec(mixer="ss2d"): 69_669,
    ModelSpec(network="unet"): 1_942_577,
    ModelSpec(network="ege-unet"): 53_374,
    ModelSpec(network="malunet"): 177_943,
    ModelSpec(network="unext"): 1_471_921,
    ModelSpec(network="unext-s"): 253_561,
    ModelSpec(network="lb-unet"): 55_865,
    ModelSpec(network="vm-unet"): 27_427_561,
    ModelSpec(network="lightm-unet"): 403_302,
    ModelSpec(network="unet-pvm"): 667_671,
    ModelSpec(network="unext-pvm"): 974_357,
    ModelSpec(network="lite-unet"): 3_825_121,
    ModelSpec(network="aulunet"): 28_636,
    ModelSpec(network="ultralbm-unet"): 34_166,
    ModelSpec(network="ultralbm-unet-student"): 10_956,
    PLUS_MODEL: 46_644,
    SMALL_MODEL: 10_913,
}
TRAINED_ANOTHER_WAY = {"best", "plus", "skin", "tune", "research", "small", "lite-unet"}


def test_every_counted_network_has_a_row_with_its_count() -> None:
    assert {preset.run.model: preset.parameters for preset in PRESETS.values()} == {
        **COUNTS,
        **OWN_COUNTS,
    }


def test_other_networks_stand_under_their_own_names() -> None:
    named = {name for name in get_args(Network) if name in PRESETS}
    assert named == set(get_args(Network)) - {ModelSpec().network}
    assert all(PRESETS[name].run.model.network == name for name in named)


def test_ablations_change_the_model_alone() -> None:
    for name in set(PRESETS) - TRAINED_ANOTHER_WAY:
        assert PRESETS[name].run == RunSpec(model=PRESETS[name].run.model, train=TrainSpec())
    models = [PRESETS[name].run.model for name in set(PRESETS) - TRAINED_ANOTHER_WAY]
    assert len(set(models)) == len(models)


@pytest.mark.parametrize("name", PRESETS)
def test_rows_are_found_by_name_and_survive_json(name: str) -> None:
    preset = find_preset(name)
    assert preset is PRESETS[name]
    assert preset.note
    assert RunSpec.from_dict(preset.run.to_dict()) == preset.run


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        find_preset("branches-3")
    assert caught.value.given == "no preset 'branches-3'"
    assert caught.value.accepted == "choose from " + ", ".join(PRESETS)
    assert caught.value.remedy.startswith("did you mean 'branches-")
    with pytest.raises(InputError, match=r"ultralbm-unet, ultralbm-unet-student\.$"):
        find_preset("zzzz")
