"""What torch does on a CPU and should not: slow linear layers, wrong grouped convolutions.

torch multiplies matrices on a CPU by Intel's MKL, which does not use the wide instructions of
processors of other makers; oneDNN, which torch carries too, does. The results differ by
rounding.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

__all__ = ["is_faster", "keep_grouped_exact", "linear", "speed_up"]


@functools.cache
def is_faster() -> bool:
    """Whether this machine's processor is one that MKL is slow on; always the same answer.

    It is a rule, not a measurement, so that two runs on one machine give the same bits.
    """
    import torch

    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            vendor = next((line for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return False
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return bool(vendor) and "GenuineIntel" not in vendor and is_wide


def speed_up(network: nn.Module) -> None:
    """Lets the linear layers of a frozen float32 network on the CPU run through oneDNN.

    Does nothing where that is not faster. The layers keep their names and weights.
    """
    import torch
    from torch import nn

    if not is_faster():
        return
    for module in network.modules():
        if type(module) is nn.Linear and module.weight.dtype is torch.float32:
            module.forward = functools.partial(_linear, module)  # type: ignore[method-assign]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """X W^T + b by oneDNN, of float32 tensors on the CPU; only where `is_faster`."""
    import torch

    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    import torch

    is_plain = x.device.type == "cpu" and x.dtype is torch.float32
    if not is_plain or torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    return linear(x, layer.weight, layer.bias)


def keep_grouped_exact(network: nn.Module) -> None:
    """Keeps grouped convolutions in float32 while the rest of a network computes in less.

    With torch 2.13 on a processor with AMX a grouped convolution in bfloat16 gives wrong numbers
    (differences of 2 where other processors have 0.007). It is a rule for every CPU, so that the
    same command gives the same numbers on all of them.
    """
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1:
            module.forward = functools.partial(_in_float32, module.forward)  # type: ignore[method-assign]


def _in_float32(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.autocast("cpu", enabled=False):
        return forward(x.float())
