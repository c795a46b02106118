"""Whether the kernels give what plain torch gives, on the GPU at hand."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from pathlib import Path

import filelock
import torch
from torch import Tensor, nn

from ulvm.errors import InputError
from ulvm.files import find_cache_folder, make_folder, write_atomically
from ulvm.nn.kernels import compiling_ahead
from ulvm.nn.kernels.device import enable, usable
from ulvm.nn.loss import segmentation_loss, targets_of

NOISE = 0.2  # at fresh weights some gradients are 1e-13, nothing but rounding
TOLERANCE = 0.01  # of a parameter's own gradient
ROUNDING = 10  # times plain torch's own error in float32, which max-pooling makes large at times


def use_kernels_if_right(network: nn.Module, images: Tensor, soft: Tensor) -> None:
    """Switch the kernels off, with a warning, if their gradients are not plain torch's.

    That they are is remembered in ulvm's cache, for these kernels and sizes on this GPU. Of several
    processes the first compiles and compares; the others wait, then find both done.

    Args:
        network: On the GPU, without dropout or running averages; compared is a copy with noise on
            its weights.
        images: float32 (batch, channels, height, width), normalised real pictures.
        soft: float32 (batch, height, width), their masks in 0..1.
    """
    if not usable(images):  # then plain torch runs anyway
        return
    right = find_cache_folder() / f"kernels-{_fingerprint(network, images.device)}"
    with _alone(right.with_suffix(".lock")):
        if not right.exists() and _are_right(network, images, soft):
            with contextlib.suppress(InputError):  # unwritable: the next run asks again
                write_atomically(right, b"")


def _alone(path: Path) -> contextlib.AbstractContextManager[object]:
    """One process at a time; where nothing can be written or locked, all at once."""
    try:
        make_folder(path.parent)
        return filelock.FileLock(path).acquire()
    except (InputError, OSError, NotImplementedError):
        return contextlib.nullcontext()


def _are_right(network: nn.Module, images: Tensor, soft: Tensor) -> bool:
    """Whether they are; if not, they are switched off, with a warning."""
    from triton.errors import TritonError  # this module is imported where there is none

    network = _with_noise(network)
    try:
        with compiling_ahead():
            _gradients(network, images, soft)
        ours = _gradients(network, images, soft)
    except TritonError as problem:  # as of a chip with less memory than those we know
        return _switch_off(f"the GPU kernels do not run on this machine ({problem})")
    enable(False)
    try:
        # Without the short floats that cuDNN takes by default.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            plain = _gradients(network, images, soft)
    finally:
        enable(True)
    exact = _gradients(network.double(), images.double(), soft.double())  # plain torch, too
    errors = _errors(ours, exact)
    allowed = [TOLERANCE + ROUNDING * error for error in _errors(plain, exact)]
    if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):  # NaN is not
        return _switch_off(
            f"the GPU kernels' gradients are up to {max(errors):.0e} off on this machine"
        )
    return True


def _switch_off(why: str) -> bool:
    enable(False)
    warnings.warn(
        f"{why}; plain torch is used instead. Please report the GPU, torch and Triton versions.",
        stacklevel=4,
    )
    return False


def _fingerprint(network: nn.Module, device: torch.device) -> str:
    """Of everything that decides what the kernels compute."""
    import triton

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shapes = [tuple(each.shape) for each in network.parameters()]
    digest = hashlib.sha256(
        repr((gpu, torch.__version__, triton.__version__, shapes, network)).encode()
    )
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    return [
        float((each - truth).norm() / truth.norm().clamp_min(1e-20))
        for each, truth in zip(found, exact, strict=True)
    ]


def _with_noise(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    network = copy.deepcopy(network)
    with torch.no_grad():
        for each in network.parameters():
            noise = torch.randn(each.shape, generator=generator).to(each.device)
            each.add_(noise, alpha=NOISE)
    return network


def _gradients(network: nn.Module, images: Tensor, soft: Tensor) -> tuple[Tensor, ...]:
    logits = network(images.contiguous(memory_format=torch.channels_last))
    loss = segmentation_loss(logits, targets_of(soft, logits.shape[1]))
    return torch.autograd.grad(loss, _parameters(network))


def _parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those whose gradient float32 can tell: not the sums that a norm behind them cancels.

    These are single factors (at the start float32 is 0.1 off, relatively) and the biases of
    convolutions (nothing but rounding where a group of the norm has one channel).
    """
    cancelled = {id(part.bias) for part in network.modules() if isinstance(part, nn.Conv2d)}
    return [each for each in network.parameters() if each.numel() > 1 and id(each) not in cancelled]
