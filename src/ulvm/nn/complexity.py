"""Parameters, multiply-accumulates and memory of a network, stage by stage, from running it."""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ulvm.errors import InputError
from ulvm.nn.mamba import Mamba, SelectiveScan
from ulvm.nn.model import ChannelAttention, UltraLightVMUNet
from ulvm.nn.networks import build_network
from ulvm.spec import LARGEST_SIZE, ModelSpec, require_divisible

Shape = tuple[int, ...]

FLOAT_BYTES = 4
HEADINGS = "stage, kind, output, parameters, paper MMAC, all MMAC, output KiB, kept KiB"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of the network costs for one picture.

    Args:
        name: ``encoder 1`` .. ``encoder 6``, ``bridge``, ``decoder 1`` .. ``decoder 5``, ``head``;
            of another paper's network, the modules it is made of.
        kind: ``conv`` or ``pvm``; of the bridge, its attentions; elsewhere the module's class.
        output_shapes: (channels, height, width) of what it hands on; the bridge, five features.
        parameters: Count, norms included.
        paper_macs: Multiply-accumulates as the paper counts them, see ``inspect_model``.
        operations: All multiply-accumulates by kind of operation, see ``inspect_model``.
        macs: Their sum.
        output_bytes: Size of what it hands on, float32.
        kept_bytes: What it computes or reads that a training step keeps for the backward pass.
    """

    name: str
    kind: str
    output_shapes: tuple[Shape, ...]
    parameters: int
    paper_macs: int
    operations: dict[str, int]
    macs: int
    output_bytes: int
    kept_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Complexity:
    """What a network costs for one picture.

    Args:
        spec: The network.
        size_hw: Height and width of the picture.
        stages: In the order in which they run.
        peak_bytes: Most bytes of activations alive at once in a forward pass without gradients,
            the picture included; an operator's own scratch space is not.
    """

    spec: ModelSpec
    size_hw: tuple[int, int]
    stages: tuple[StageCost, ...]
    peak_bytes: int

    def totals(self) -> dict[str, int]:
        """Sums over the stages, the size of the weights and the peak, by name."""
        names = ("parameters", "paper_macs", "macs", "kept_bytes")
        sums = {name: sum(getattr(stage, name) for stage in self.stages) for name in names}
        weights = sums["parameters"] * FLOAT_BYTES
        return {**sums, "parameter_bytes": weights, "peak_bytes": self.peak_bytes}

    def operations(self) -> dict[str, int]:
        """All multiply-accumulates by kind of operation."""
        return dict(sum((Counter(stage.operations) for stage in self.stages), Counter[str]()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {
            "model": self.spec.to_dict(),
            "size_hw": self.size_hw,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "operations": self.operations(),
            "totals": self.totals(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def table(self) -> str:
        """Text for people: a row for each stage, the totals and what they mean."""
        rows = [HEADINGS.split(", ")]
        for stage in self.stages:
            ends = dict.fromkeys((stage.output_shapes[0], stage.output_shapes[-1]))
            shapes = " … ".join("×".join(map(str, shape)) for shape in ends)
            rows.append([stage.name, stage.kind, shapes, *_cells(dataclasses.asdict(stage))])
        total = self.totals()
        rows.append(["total", "", "", *_cells(total)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if index < 3 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        kinds = Counter(self.operations()).most_common()
        everything = ", ".join(f"{kind} {macs / 1e6:.1f}" for kind, macs in kinds)
        return "\n".join(
            [
                *lines,
                "",
                f"One picture of {self.size_hw[0]}×{self.size_hw[1]}, float32. MMAC: million "
                "multiply-accumulates; output: what a stage hands on; kept: for the backward pass.",
                f"{total['paper_macs'] / 1e9:.3f} G multiply-accumulates as the paper counts, "
                "which leaves out all of Mamba;",
                f"{total['macs'] / 1e9:.3f} G with everything (M: {everything}).",
                f"Memory: weights {total['parameter_bytes'] / 2**20:.2f} MiB; activations "
                f"{self.peak_bytes / 2**20:.1f} MiB at most to predict, "
                f"{total['kept_bytes'] / 2**20:.1f} MiB kept to train.",
            ]
        )


def inspect_model(spec: ModelSpec, size_hw: tuple[int, int] = (256, 256)) -> Complexity:
    """Run the network on the CPU, batch 1, and count what each of its stages costs.

    ``paper_macs`` is what THOP 0.1.1 (``thop.profile``, the authors' tool) sees in the released
    model with mamba_ssm's fused kernel: 60,240,000, the paper's 0.060 GFLOPs. It counts

    * convolution and fully connected modules: one for each weight used, biases free (a transposed
      convolution as if whole kernels made each output);
    * LayerNorm of the PVM layer, called twice, and batch norms: four for each number;
    * the average pooling of the channel attention: height · width + 1 for each channel;
    * bilinear upsampling that is a module: eleven for each number;

    and nothing for the whole Mamba, one- or two-directional (the fused kernel takes its weights
    and calls none of its modules; without that kernel THOP prints 0.065), for what makes B, C and
    the step size in ``ss2d`` (no modules in VMamba's code), for GroupNorm and home-made norms
    (THOP has no rule) and for whatever is a function in the released code: max-pooling, GELU,
    upsampling, the means and maxima of the spatial attention, gates and sums.

    ``operations`` is everything, one multiply-add as one:

    * ``convolution`` (depthwise too) and ``linear``: one for each weight used, biases free;
    * ``scan``: for each step and inner channel softplus, delta · x and D · x, and for each state
      of it delta · A, exp, · B, the state's update and the contraction with C: 5 · d_state + 3.
      This is the recurrence as written; the chunked form that runs does more;
    * ``normalisation``: four for each number (mean, variance, scale, weight and bias; a softmax
      likewise), two of a batch norm, whose mean and variance are known;
    * ``upsampling``: four for each output, two along one axis;
    * ``other``: one for each number that an element-wise operation writes (GELU, SiLU, sigmoid,
      gates, sums) or that a pooling, mean or maximum reads. Copies and views are free.

    Args:
        spec: The network; its values are drawn, the caller's random state stays as it is.
        size_hw: Height and width of the picture, multiples of 32.

    Returns:
        The costs of one picture, stage by stage. Memory is that of this package's torch code.

    Raises:
        InputError: The size cannot be halved five times, or is too large.
    """
    require_divisible(size_hw)
    if max(size_hw) > LARGEST_SIZE:
        raise InputError(
            f"the size {size_hw[0]}×{size_hw[1]} is too large",
            f"up to {LARGEST_SIZE} on a side",
            "",
        )
    with torch.random.fork_rng(devices=[]):
        model = build_network(spec).eval()
        picture = torch.rand(1, spec.in_channels, *size_hw) * 255
    stages = _stages(model)
    watch = _Watch(model, picture)
    for name, _, parts in stages:
        parts[0].register_forward_pre_hook(partial(watch.enter, name))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda x: x):
        graph = model(picture)  # held, so that no address of a kept tensor is used twice
    del graph
    watch.count_modules(model)
    with torch.no_grad(), watch:
        model(picture)

    shapes: dict[str, tuple[Shape, ...]] = {name: (each,) for name, each in watch.shapes.items()}
    if isinstance(model, UltraLightVMUNet):
        shapes["bridge"] = tuple(watch.shapes[f"encoder {index + 1}"] for index in range(5))
    else:  # its modules are listed by kind
        stages.sort(key=lambda stage: list(shapes).index(stage[0]))
    costs = tuple(
        StageCost(
            name=name,
            kind=kind,
            output_shapes=shapes[name],
            parameters=sum(weight.numel() for part in parts for weight in part.parameters()),
            paper_macs=watch.paper_macs[name],
            operations=dict(watch.operations[name]),
            macs=watch.operations[name].total(),
            output_bytes=sum(map(math.prod, shapes[name])) * FLOAT_BYTES,
            kept_bytes=sum(size for stage, size in watch.kept.values() if stage == name),
        )
        for name, kind, parts in stages
    )
    return Complexity(spec=spec, size_hw=size_hw, stages=costs, peak_bytes=watch.peak_bytes)


def _stages(model: nn.Module) -> list[tuple[str, str, list[nn.Module]]]:
    """Name, kind and modules of each stage; it starts when the first of these is called."""
    if not isinstance(model, UltraLightVMUNet):
        return [(name, type(part).__name__, [part]) for name, part in _parts(model)]
    spec = model.spec
    encoder = [
        (f"encoder {index + 1}", kind, [block, *model.encoder_norms[index : index + 1]])
        for index, (kind, block) in enumerate(zip(spec.encoder, model.encoder, strict=True))
    ]
    decoder = [
        (f"decoder {index + 1}", kind, [block, model.decoder_norms[index]])
        for index, (kind, block) in enumerate(zip(spec.decoder, model.decoder, strict=True))
    ]
    bridge, head = ("bridge", spec.bridge, [model.bridge]), ("head", "conv", [model.head])
    return [*encoder, bridge, *decoder, head]


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a network is made of, those of lists one by one."""
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleList):
            yield from ((f"{name} {number}", each) for number, each in enumerate(part, start=1))
        else:
            yield name, part


class _Watch(TorchDispatchMode):
    """Books what runs to the stage that runs it; a stage lasts until the next one starts.

    Args:
        model: The network; its parameters and buffers are no activations.
        picture: The input, alive during the whole pass.
    """

    def __init__(self, model: nn.Module, picture: Tensor) -> None:
        super().__init__()
        self.stage = ""
        self.in_scan = False
        self.shapes: dict[str, Shape] = {}  # of the last tensor that a stage computed
        self.operations: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.paper_macs: Counter[str] = Counter()
        self.kept: dict[int, tuple[str, int]] = {}  # address → stage, bytes
        self.peak_bytes = 0
        self.weights = {_address(each) for each in (*model.parameters(), *model.buffers())}
        self.alive = weakref.WeakSet([picture.untyped_storage()])

    def enter(self, name: str, *_: Any) -> None:
        self.stage = name

    def keep(self, tensor: Tensor) -> Tensor:
        """Note what autograd saves; views of one storage are kept once."""
        if _address(tensor) not in self.weights:
            size = tensor.untyped_storage().nbytes()
            self.kept.setdefault(_address(tensor), (self.stage, size))
        return tensor.detach()

    def count_modules(self, model: nn.Module) -> None:
        """Count from now on what only modules show: what THOP sees, and the scan."""
        fused = {
            part
            for module in model.modules()
            if isinstance(module, Mamba | SelectiveScan)
            for part in module.modules()
        }
        for module in model.modules():
            if module not in fused:
                module.register_forward_hook(self._count_as_paper)
            if isinstance(module, SelectiveScan):
                module.register_forward_pre_hook(self._enter_scan)
                module.register_forward_hook(self._leave_scan)

    def _count_as_paper(self, module: nn.Module, inputs: tuple[Any], output: Any) -> None:
        macs = 0
        if isinstance(module, nn.Linear):
            macs = output.numel() * module.in_features
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            taps = math.prod(module.kernel_size)
            macs = output.numel() * module.in_channels // module.groups * taps
        elif type(module) is nn.LayerNorm or isinstance(module, nn.BatchNorm2d):
            macs = 4 * output.numel()
        elif isinstance(module, nn.Upsample):
            macs = 11 * output.numel()
        elif isinstance(module, ChannelAttention):
            macs = sum(skip.shape[1] * (math.prod(skip.shape[2:]) + 1) for skip in inputs[0])
        self.paper_macs[self.stage] += macs

    def _enter_scan(self, module: nn.Module, inputs: Any) -> None:
        self.in_scan = True

    def _leave_scan(self, module: SelectiveScan, inputs: Any, y: Tensor) -> None:
        self.in_scan = False
        self.operations[self.stage]["scan"] += y.numel() * (5 * module.d_state + 3)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        known = {_address(each) for each in read}
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        written = [each for each in results if _address(each) not in known]
        name = func.overloadpacket.__name__
        if name == "convolution" and args[6]:
            name = "transposed convolution"
        if written:  # otherwise a view, or in place
            self.alive.update(each.untyped_storage() for each in written)
            self.peak_bytes = max(self.peak_bytes, sum(each.nbytes() for each in self.alive))
            self.shapes[self.stage] = tuple(written[0].shape[1:])
            self._count(name, read, written[0])
        elif name.endswith("_"):
            self._count(name.removesuffix("_"), read, results[0])
        return result

    def _count(self, operator: str, read: list[Tensor], written: Tensor) -> None:
        if operator not in _COUNTS and not self.in_scan:
            raise NotImplementedError(f"{__name__} has no count for torch's operator {operator}")
        kind, count = _COUNTS.get(operator, _FREE)
        if kind == "linear" or not self.in_scan:
            self.operations[self.stage][kind] += count(read, written)


_Count = tuple[str, Callable[[list[Tensor], Tensor], int]]

_FREE: _Count = ("other", lambda read, written: 0)
_LINEAR: _Count = ("linear", lambda read, written: written.numel() * len(read[-1]))
_NORM: _Count = ("normalisation", lambda read, written: 4 * written.numel())
_READ: _Count = ("other", lambda read, written: read[0].numel())
_WRITTEN: _Count = ("other", lambda read, written: written.numel())

# Torch's operator → kind, and multiply-accumulates from the tensors read and written.
_COUNTS: dict[str, _Count] = {
    "convolution": ("convolution", lambda read, written: written.numel() * read[1][0].numel()),
    "transposed convolution": (
        "convolution",
        lambda read, written: read[0].numel() * read[1][0].numel(),
    ),
    "upsample_linear1d": ("upsampling", lambda read, written: 2 * written.numel()),
    "upsample_bilinear2d": ("upsampling", lambda read, written: 4 * written.numel()),
    **dict.fromkeys(("mm", "addmm"), _LINEAR),
    "native_batch_norm": ("normalisation", lambda read, written: 2 * written.numel()),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_softmax"), _NORM),
    **dict.fromkeys(("mean", "sum", "amax", "max_pool2d_with_indices", "avg_pool2d"), _READ),
    **dict.fromkeys(("add", "sub", "mul", "div", "sqrt"), _WRITTEN),
    **dict.fromkeys(("relu", "hardtanh", "gelu", "silu", "sigmoid", "tanh"), _WRITTEN),
    **dict.fromkeys(("clone", "cat", "stack", "empty", "flip", "upsample_nearest2d"), _FREE),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d"), _FREE),
}


def _cells(costs: dict[str, Any]) -> list[str]:
    memory = [costs.get(name) for name in ("output_bytes", "kept_bytes")]
    return [
        f"{costs['parameters']:,}",
        *(f"{costs[name] / 1e6:.3f}" for name in ("paper_macs", "macs")),
        *("" if size is None else f"{size / 1024:,.0f}" for size in memory),
    ]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
