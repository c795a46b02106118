"""The paper's runs and ablations as rows: change one by adding one."""

from __future__ import annotations

import dataclasses

from ulvm.errors import unknown_name
from ulvm.spec import DataSpec, ModelSpec, RunSpec, SourceSpec, Stage, TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A named run with the figures that it is compared with.

    Args:
        run: The resolved run.
        parameters: Exact count, asserted by a test.
        note: What the row varies.
    """

    run: RunSpec
    parameters: int
    note: str


PAPER_TRAIN = TrainSpec()
BEST_TRAIN = TrainSpec(
    epochs=150,
    batch_size=16,
    learning_rate=3e-3,
    schedule="one-cycle",
    warmup_epochs=5,
    augmentation="strong",
    average_decay=0.998,
)
# What learns from several kinds of pictures.
PLUS_TRAIN = dataclasses.replace(BEST_TRAIN, epochs=384, augmentation="stronger", teacher_share=0.5)
SKIN_TRAIN = dataclasses.replace(
    PLUS_TRAIN, epochs=116, augmentation="strong", lesion_free=0.2, pasted=0.3, teacher_share=0.0
)
# The permutation's training and validation parts and the official validation part of ISIC 2017.
_PHOTOS = SourceSpec(dataset="pad-ufes", split="skin", weight=3.0)
SKIN_DATA = DataSpec(split="skin", more=(_PHOTOS,))
RESEARCH_DATA = DataSpec(
    split="skin",
    more=(
        SourceSpec(dataset="pad-ufes", split="skin", weight=5.0),
        SourceSpec(dataset="ham10000", split="research", weight=0.5),
    ),
)
RESEARCH_TRAIN = dataclasses.replace(SKIN_TRAIN, epochs=61, lesion_free=0.1, pasted=0.0)
TEACHER_TRAIN = dataclasses.replace(
    SKIN_TRAIN,
    epochs=22,
    augmentation="stronger",
    pasted=0.5,
    learning_rate=1e-3,
    warmup_epochs=2,
    average_decay=0.995,
    precision="bfloat16",
)
# A few of one's own pictures, from the weights of --from.
TUNE_TRAIN = dataclasses.replace(
    BEST_TRAIN,
    epochs=60,
    batch_size=8,
    learning_rate=1e-3,
    warmup_epochs=2,
    average_decay=0.98,
    patience=15,
)
# PVM layers where tokens are few; convolutions, which are faster, above; no bridge.
PLUS_MODEL = ModelSpec(
    widths=(8, 16, 24, 32, 40, 48),
    encoder=("conv", "conv", "conv", "conv", "conv", "pvm"),
    decoder=("pvm", "pvm", "conv", "conv", "conv"),
    bridge="none",
    init="mamba",
)
SMALL_MODEL = dataclasses.replace(
    PLUS_MODEL,
    widths=(4, 8, 12, 16, 20, 24),
    encoder=("conv", "conv", "conv", "conv", "pvm", "pvm"),
)

_CONV_ENCODER: tuple[Stage, ...] = ("conv",) * 6
_CONV_DECODER: tuple[Stage, ...] = ("conv",) * 5


def _row(
    note: str,
    model: ModelSpec,
    parameters: int,
    train: TrainSpec = PAPER_TRAIN,
    data: DataSpec | None = None,
) -> Preset:
    run = RunSpec(model=model, data=data or DataSpec(), train=train)
    return Preset(run=run, parameters=parameters, note=note)


# Other papers' networks, under the paper's recipe: what they are, parameters.
_PEERS = {
    "unet": ("U-Net, 16 channels first, arXiv 1505.04597", 1_942_577),
    "ege-unet": ("arXiv 2307.08473", 53_374),
    "malunet": ("arXiv 2211.01784", 177_943),
    "unext": ("arXiv 2203.04967", 1_471_921),
    "unext-s": ("arXiv 2203.04967, the small one of its code", 253_561),
    "lb-unet": ("MICCAI 2024, paper 2135", 55_865),
    "vm-unet": ("arXiv 2402.02491, from random weights", 27_427_561),
    "lightm-unet": ("arXiv 2403.05246, 8 channels first", 403_302),
    "unet-pvm": ("unet with PVM for its deep convolutions", 667_671),
    "unext-pvm": ("unext with PVM for its deep convolutions", 974_357),
    "aulunet": ("BMVC 2025, paper 1199", 28_636),
    "ultralbm-unet": ("arXiv 2512.21584", 34_166),
    "ultralbm-unet-student": ("arXiv 2512.21584, its student, without the teacher", 10_956),
}

PRESETS: dict[str, Preset] = {
    # name: what varies, model, parameters
    "paper": _row("the paper's model and recipe", ModelSpec(), 49_457),
    "best": _row(
        "the same network, a stronger recipe", ModelSpec(init="mamba"), 49_457, train=BEST_TRAIN
    ),
    "plus": _row("fewer PVM layers, no bridge, a teacher", PLUS_MODEL, 46_644, train=PLUS_TRAIN),
    "skin": _row("plus on photos too", PLUS_MODEL, 46_644, train=SKIN_TRAIN, data=SKIN_DATA),
    "research": _row(
        "plus on every data set", PLUS_MODEL, 46_644, train=RESEARCH_TRAIN, data=RESEARCH_DATA
    ),
    "tune": _row("one's own pictures, with --from skin", PLUS_MODEL, 46_644, train=TUNE_TRAIN),
    "small": _row("plus, half the widths", SMALL_MODEL, 10_913, train=PLUS_TRAIN),
    "lite-unet": _row(
        "teaches the others",
        ModelSpec(network="lite-unet"),
        3_825_121,
        train=TEACHER_TRAIN,
        data=SKIN_DATA,
    ),
    "branches-1": _row("one Mamba over all channels", ModelSpec(branches=1), 136_269),
    "branches-2": _row("two branches", ModelSpec(branches=2), 69_589),
    "branches-8": _row("eight branches", ModelSpec(branches=8), 42_737),
    "bridge-none": _row("plain skips", ModelSpec(bridge="none"), 32_843),
    "bridge-channel": _row("channel attention only", ModelSpec(bridge="channel"), 49_358),
    "bridge-spatial": _row("spatial attention only", ModelSpec(bridge="spatial"), 32_942),
    "conv-encoder": _row(
        "3×3 convolutions for the encoder's PVM", ModelSpec(encoder=_CONV_ENCODER), 87_826
    ),
    "conv-decoder": _row(
        "3×3 convolutions for the decoder's PVM", ModelSpec(decoder=_CONV_DECODER), 85_286
    ),
    "conv-both": _row(
        "no PVM layer", ModelSpec(encoder=_CONV_ENCODER, decoder=_CONV_DECODER), 123_655
    ),
    "d-state-4": _row("state size", ModelSpec(d_state=4), 44_993),
    "d-state-8": _row("state size", ModelSpec(d_state=8), 46_481),
    "d-state-32": _row("state size", ModelSpec(d_state=32), 55_409),
    "d-state-64": _row("state size", ModelSpec(d_state=64), 67_313),
    "d-conv-2": _row("convolution width", ModelSpec(d_conv=2), 49_209),
    "d-conv-3": _row("convolution width", ModelSpec(d_conv=3), 49_333),
    "expand-1": _row("inner expansion", ModelSpec(expand=1), 43_799),
    "expand-3": _row("inner expansion", ModelSpec(expand=3), 55_115),
    "expand-4": _row("inner expansion", ModelSpec(expand=4), 60_773),
    "widths-half": _row("half the widths", ModelSpec(widths=(4, 8, 12, 16, 24, 32)), 14_633),
    "widths-quarter": _row(
        "about a quarter of the widths", ModelSpec(widths=(4, 4, 8, 8, 12, 16)), 5_581
    ),
    "mixer-bidirectional": _row(
        "forwards and backwards (Vision Mamba)", ModelSpec(mixer="bidirectional"), 56_525
    ),
    "mixer-ss2d": _row("rows and columns, both ways (VMamba)", ModelSpec(mixer="ss2d"), 69_669),
    **{
        name: _row(note, ModelSpec.from_dict({"network": name}), parameters)
        for name, (note, parameters) in _PEERS.items()
    },
}


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        InputError: There is none; the message names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise unknown_name(f"no preset {name!r}", name, PRESETS)
