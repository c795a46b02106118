"""What a run is: frozen dataclasses, their checks, JSON and typed dotted overrides."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, Self, cast, get_args, get_origin, get_type_hints

from ulvm.errors import InputError, unknown_name
from ulvm.limits import parse_json

Network = Literal[
    "ultralight-vm-unet",
    "unet",
    "ege-unet",
    "malunet",
    "unext",
    "unext-s",
    "lb-unet",
    "vm-unet",
    "lightm-unet",
    "unet-pvm",
    "unext-pvm",
    "lite-unet",
    "aulunet",
    "ultralbm-unet",
    "ultralbm-unet-student",
]
Stage = Literal["conv", "pvm"]
Mixer = Literal["mamba", "bidirectional", "ss2d"]
Bridge = Literal["both", "spatial", "channel", "none"]
Init = Literal["paper", "mamba"]
EngineName = Literal["c", "onnx"]  # what runs a model: ulvm's own, ONNX Runtime
DatasetName = Literal["isic2017", "isic2018", "ph2", "folder", "isic2016", "ham10000", "pad-ufes"]
Augmentation = Literal["none", "paper", "strong", "stronger"]
Schedule = Literal["cosine-cycle", "one-cycle"]
FOLDER_SPLIT = "folders"  # of a folder with train/, val/ and test/: what lies in each
Precision = Literal["float32", "bfloat16", "float16"]

STAGES = 6
# Model files, ONNX and safetensors, hold this key: JSON {"format": FORMAT, "run": RunSpec, …}.
METADATA_KEY = "ulvm"
FORMAT = 1
DOWNSAMPLING = 32  # five halvings: the input height and width must be multiples of it

LARGEST_WIDTH = 4096
LARGEST_SIZE = 4096
"""Of a network's input, in pixels a side."""
_ABOVE_0, _BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
_SHARE = (0, 1, "it must be a share in 0..1", "use 0 for none")
# The least and the most that a field may be, and where those don't say it, what it must be and
# what to do. Larger values are mistakes, and fail far from where they were made.
_RANGES: dict[str, tuple[float, float, str, str]] = {
    "in_channels": (1, 256, "", ""),
    "classes": (1, 255, "", ""),
    "branches": (1, 4096, "", ""),
    "d_state": (1, 1024, "", ""),
    **dict.fromkeys(("d_conv", "expand"), (1, 64, "", "")),
    "weight": (_ABOVE_0, math.inf, "it must be above 0", "leave the data set out instead"),
    "image_size": (-math.inf, LARGEST_SIZE, "", ""),
    **dict.fromkeys(("epochs", "batch_size", "period_epochs"), (1, 1_000_000, "", "")),
    **dict.fromkeys(("warmup_epochs", "patience"), (0, 1_000_000, "", "")),
    "seed": (0, 2**63 - 1, "", ""),  # torch's
    **dict.fromkeys(("learning_rate", "min_learning_rate", "weight_decay"), (0, math.inf, "", "")),
    "average_decay": (0, _BELOW_1, "it must be 0 ≤ average_decay < 1", "use .999, or 0 for none"),
    "lesion_free": (0, _BELOW_1, "it must be a share in 0..1, below 1", "use 0 for none"),
    **dict.fromkeys(("pasted", "teacher_share"), _SHARE),
    "threshold": (_ABOVE_0, _BELOW_1, "it must lie between 0 and 1", "use 0.5, the paper's"),
}
_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 80
_short.maxlevel = 3


@functools.cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


class _Spec:
    """Types and ranges of the fields, JSON and overrides, shared by the specs below."""

    def __post_init__(self) -> None:
        for name, hint in _type_hints(cast(Hashable, type(self))).items():
            value = _typed(type(self), name, hint, getattr(self, name))
            object.__setattr__(self, name, value)  # frozen, but not yet made
            if name in _RANGES:
                _require_range(f"{type(self).__name__}.{name}", value, *_RANGES[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the spec from plain JSON values.

        Raises:
            InputError: A field is unknown or has a value of another type.
        """
        for name in values:
            _require_field(cls, name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` gives an equal spec back."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return plain

    def override(self, assignments: Sequence[str]) -> Self:
        """A copy with fields changed all together, as ``--set a.b=value`` does; then checked.

        Args:
            assignments: Strings ``field=value`` or ``part.field=value``; the value is JSON,
                or a bare word for a string.

        Raises:
            InputError: No such field, a value of another type, or values that don't fit.
        """
        table: dict[str, Any] = {}
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals:
                raise InputError(
                    f"--set {assignment!r} has no '='",
                    "it must be field=value, such as train.epochs=100",
                    "write the value after an equals sign",
                )
            *parts, name = path.strip().split(".")
            place: Any = table
            for part in parts:
                place = place.setdefault(part, {})
                if isinstance(place, str):
                    raise _given_twice(part)
            if isinstance(place.get(name), dict):
                raise _given_twice(name)
            place[name] = text.strip()
        return self._change(table)

    def _change(self, table: Mapping[str, Any]) -> Self:
        """A copy with the fields of ``table``: a text is a value, a table those of a part."""
        cls = type(self)
        values: dict[str, Any] = {}
        for name, given in table.items():
            _require_field(cls, name)
            current = getattr(self, name)
            if isinstance(given, str):
                hint = get_type_hints(cls)[name]
                values[name] = _typed(cls, name, hint, _parse(given), literal=given)
            elif isinstance(current, _Spec):
                values[name] = current._change(given)
            else:
                raise InputError(
                    f"{cls.__name__}.{name} has no parts",
                    "",
                    f"write {name}=value, without '.{next(iter(given))}'",
                )
        return dataclasses.replace(self, **values)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(_Spec):
    """The network. Defaults are the paper's model, 49,457 parameters.

    Args:
        network: This project's own, which the other fields describe, or another paper's
            (``nn/peers/``), which is as published: the other fields keep their defaults.
        in_channels: Channels of the input picture.
        classes: 1 gives a sigmoid, more give a softmax over classes.
        widths: Channels of the six stages.
        encoder: ``conv`` (3×3) or ``pvm`` for encoder stages 1..6.
        decoder: The same for decoder stages 1..5, deepest first.
        branches: Groups that a PVM layer splits its channels into.
        d_state, d_conv, expand: Mamba's state size, convolution width and inner expansion.
        mixer: Sequence mixer inside a PVM layer.
        bridge: Which attentions the skip bridge has.
        init: ``paper`` is the released code's sweep over every layer; ``mamba`` keeps Mamba's
            own initialisation of the step size (dt) and draws the rest as ``paper`` does.

    Raises:
        InputError: A value is out of range; the message says what is accepted.
    """

    network: Network = "ultralight-vm-unet"
    in_channels: int = 3
    classes: int = 1
    widths: tuple[int, ...] = (8, 16, 24, 32, 48, 64)
    encoder: tuple[Stage, ...] = ("conv", "conv", "conv", "pvm", "pvm", "pvm")
    decoder: tuple[Stage, ...] = ("pvm", "pvm", "pvm", "conv", "conv")
    branches: int = 4
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    mixer: Mixer = "mamba"
    bridge: Bridge = "both"
    init: Init = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self) if self.network != ModelSpec.network else ():
            if field.name != "network" and getattr(self, field.name) != field.default:
                raise InputError(
                    f"ModelSpec.{field.name}={getattr(self, field.name)!r} does not fit "
                    f"network={self.network!r}",
                    f"it must be {field.default!r}, for that network is as published",
                    f"leave out {field.name}, or choose network={ModelSpec.network!r}",
                )
        for name, length in (("widths", STAGES), ("encoder", STAGES), ("decoder", STAGES - 1)):
            if len(getattr(self, name)) != length:
                raise InputError(
                    f"ModelSpec.{name} has {len(getattr(self, name))} entries",
                    f"it must have {length}, one for each stage",
                    "",
                )
        if bad := [width for width in self.widths if not 4 <= width <= LARGEST_WIDTH or width % 4]:
            raise InputError(
                f"ModelSpec.widths holds {bad[0]}",
                f"widths must be multiples of 4 up to {LARGEST_WIDTH}, for GroupNorm has four "
                "groups",
                "",
            )
        # A PVM stage splits its *input* channels.
        inputs = (self.in_channels, *self.widths[:-1])
        stages = [*zip(self.encoder, inputs, strict=True)]
        stages += zip(self.decoder, self.widths[:0:-1], strict=True)
        for stage, channels in stages:
            if stage == "pvm" and channels % self.branches:
                raise InputError(
                    f"ModelSpec.branches={self.branches} does not divide a PVM stage's "
                    f"{channels} input channels",
                    "it must divide the input channels of every PVM stage",
                    "change branches, widths or that stage to conv",
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSpec(_Spec):
    """One data set of a run that has several.

    Args:
        dataset: Name of the data set.
        split: Name of a committed split, or the path of a split file of one's own.
        weight: How often a picture of it is drawn, beside one of a data set of weight 1.
    """

    dataset: DatasetName
    split: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec(_Spec):
    """Which pictures, in which split, at which size.

    Args:
        dataset: Name of the data set.
        split: Name of a committed split, or the path of a split file of one's own.
        image_size: Height and width of the network's input in pixels, a multiple of 32.
        more: Further data sets, each with its split and how often its pictures are drawn.
    """

    dataset: DatasetName = "isic2017"
    split: str = "paper-permutation"
    image_size: int = 256
    more: tuple[SourceSpec, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_divisible((self.image_size, self.image_size), "DataSpec.image_size")
        names = [source.dataset for source in self.sources]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"DataSpec names {twice[0]} twice",
                "each data set can be named once",
                "put the pictures of both into one folder and one split",
            )

    def choose(self, names: Sequence[str], splits: Mapping[str, str]) -> DataSpec:
        """The same with these data sets, in this order, and these splits.

        A data set keeps its split where none is given; a folder is then split as it is sorted.

        Raises:
            InputError: A data set that is new here has no split, or a split is of none of them.
        """
        for name in splits.keys() - set(names):
            raise InputError(
                f"a split of {name}, which is no data set of this run",
                f"it has {', '.join(names)}",
                "write NAME=SPLIT with one of these names, also where the split's path has a '='",
            )
        known: dict[str, SourceSpec] = {source.dataset: source for source in self.sources}
        chosen = []
        for name in names:
            if name == "folder" and name not in known:
                splits = {name: FOLDER_SPLIT, **splits}
            if name not in splits and name not in known:
                raise InputError(
                    f"{name} has no split",
                    f"this preset has splits of {', '.join(known)}",
                    f"write --split {name}=NAME, or name a split file",
                )
            weight = known[name].weight if name in known else 1.0
            split = splits[name] if name in splits else known[name].split
            values = {"dataset": name, "split": split, "weight": weight}
            chosen.append(SourceSpec.from_dict(values))
        first, *more = chosen
        return dataclasses.replace(self, dataset=first.dataset, split=first.split, more=tuple(more))

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """Every data set of the run, the first one with weight 1."""
        return (SourceSpec(dataset=self.dataset, split=self.split), *self.more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec(_Spec):
    """The training recipe. Defaults are the authors' (released code).

    Args:
        epochs: Passes over the training part.
        batch_size: Pictures per optimizer step.
        learning_rate, min_learning_rate: Highest and lowest AdamW rate.
        weight_decay: AdamW's decoupled decay.
        schedule: ``cosine-cycle`` falls and rises every ``period_epochs`` (the authors');
            ``one-cycle`` warms up linearly and falls once along a cosine.
        period_epochs: Half a cosine cycle, in epochs (torch's ``T_max``).
        warmup_epochs: Linear warm-up of ``one-cycle``.
        augmentation: ``paper`` (quarter turns, flips, rotations), ``strong`` (affine and
            colour as well), ``stronger`` (more of both) or ``none``.
        lesion_free: Share of the pictures that show no lesion and have an empty mask, 0..1: skin
            beside the masks and what ``lesion_free.py`` draws.
        pasted: Share of the lesion-free pictures of skin on which another picture's lesion is
            laid, 0..1.
        teacher_share: Share of a teacher's probability in what is learnt, 0..1; the mask has the
            rest.
        average_decay: Decay of an exponential moving average of the weights, per step; the
            average is validated and kept. 0 keeps the weights themselves.
        patience: Training ends early after so many epochs without a lower validation loss; 0
            trains all epochs.
        precision: In what the network computes where that is safe; weights, loss, the scan and
            validation stay in float32. ``float16`` scales the loss against underflow.
        seed: Seed of initialisation, order and augmentation.
    """

    epochs: int = 250
    batch_size: int = 8
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine-cycle"
    period_epochs: int = 50
    warmup_epochs: int = 0
    augmentation: Augmentation = "paper"
    lesion_free: float = 0.0
    pasted: float = 0.0
    teacher_share: float = 0.0
    average_decay: float = 0.0
    patience: int = 0
    precision: Precision = "float32"
    seed: int = 42


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec(_Spec):
    """One run: model, data, training and the threshold of its masks.

    Args:
        threshold: A pixel is lesion where the probability is at least this, 0..1.
    """

    model: ModelSpec = dataclasses.field(default_factory=ModelSpec)
    data: DataSpec = dataclasses.field(default_factory=DataSpec)
    train: TrainSpec = dataclasses.field(default_factory=TrainSpec)
    threshold: float = 0.5


def require_divisible(size_hw: tuple[int, int], where: str = "input size") -> None:
    """Check that a picture of this size can be halved five times.

    Raises:
        InputError: Height or width is no multiple of 32; the message names the nearest sizes.
    """
    if all(side >= DOWNSAMPLING and side % DOWNSAMPLING == 0 for side in size_hw):
        return
    floors = [max(1, side // DOWNSAMPLING) * DOWNSAMPLING for side in size_hw]
    ceilings = [max(1, -(-side // DOWNSAMPLING)) * DOWNSAMPLING for side in size_hw]
    nearest = sorted({tuple(floors), tuple(ceilings)})
    raise InputError(
        f"{where} is {size_hw[0]}×{size_hw[1]}",
        f"height and width must be multiples of {DOWNSAMPLING}",
        "the nearest are " + " and ".join(f"{h}×{w}" for h, w in nearest),
    )


def require_rgb(model: ModelSpec) -> None:
    """Check that a network takes what files are read as.

    Raises:
        InputError: It takes another number of channels than three.
    """
    if model.in_channels != 3:
        raise InputError(
            f"model.in_channels={model.in_channels} does not fit pictures of three channels",
            "files are read as RGB; other networks are for programs that call them themselves",
            "choose a model of 3 channels, or ulvm.nn.load_weights for the bare network",
        )


def _require_range(
    field: str, value: float, least: float, most: float, accepted: str, remedy: str
) -> None:
    if not (least <= value <= most and math.isfinite(value)):  # false for NaN as well
        bound = f"at most {most}" if most < value < math.inf else f"{least} or more"
        raise InputError(
            f"{field}={_short.repr(value)} is out of range",
            accepted or f"it must be {bound}",
            remedy,
        )


def _require_field(cls: type, name: str) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    if name not in names:
        raise unknown_name(f"no field {name!r} in {cls.__name__}", name, names)


def _given_twice(name: str) -> InputError:
    return InputError(f"--set gives {name} as a whole and in parts", "", "keep one of the two")


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:  # no JSON, a number of thousands of digits, deep brackets
        return [_parse(each) for each in text.split(",")] if "," in text else text


def _typed(cls: type, name: str, hint: Any, value: Any, *, literal: str | None = None) -> Any:
    """``value`` as the type that the annotation of ``cls.name`` asks for."""
    origin = get_origin(hint)
    accepted: str | None = None
    if isinstance(hint, type) and issubclass(hint, _Spec):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return hint.from_dict(value)
        accepted = f"a table with the fields of {hint.__name__}"
    elif origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        element = get_args(hint)[0]
        return tuple(_typed(cls, name, element, each) for each in value)
    elif origin is Literal:
        if value in get_args(hint):
            return value
        accepted = "one of " + ", ".join(str(choice) for choice in get_args(hint))
    elif hint is str and (isinstance(value, str) or literal is not None):
        return value if isinstance(value, str) else literal
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            return math.inf if value > 0 else -math.inf
    if accepted is None:
        accepted = "a list, such as 8,16,24" if origin is tuple else f"of type {hint.__name__}"
    raise InputError(
        f"{cls.__name__}.{name}={_short.repr(value)} does not fit", f"it must be {accepted}", ""
    )
