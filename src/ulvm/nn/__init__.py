"""Everything that needs torch: the network, its training and its export."""

from ulvm.nn.checkpoint import load_authors_checkpoint, load_weights
from ulvm.nn.kernels import accelerate
from ulvm.nn.model import PVMLayer, UltraLightVMUNet
from ulvm.nn.scan import selective_scan

__all__ = [
    "PVMLayer",
    "UltraLightVMUNet",
    "accelerate",
    "load_authors_checkpoint",
    "load_weights",
    "selective_scan",
]
