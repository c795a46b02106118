"""Everything that needs torch: the network, its training and its export."""

from ulvm.nn.model import PVMLayer, UltraLightVMUNet
from ulvm.nn.scan import selective_scan

__all__ = ["PVMLayer", "UltraLightVMUNet", "selective_scan"]
