"""Where and in which arithmetic to compute."""

from contextlib import nullcontext

import torch


class DeviceError(ValueError):
    """The device or precision asked for is not to be had on this machine."""


def pick_device(device: str = "auto", precision: str = "auto") -> tuple[str, str]:
    """('cpu' or 'cuda', 'float32' or 'bf16') for what a configuration asks; DeviceError where it cannot be met."""
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise DeviceError("device=cuda asked for, but PyTorch sees no CUDA GPU here: use device=auto or device=cpu")
    device = "cuda" if cuda and device != "cpu" else "cpu"
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(False) if device == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        precision = "bf16" if fast else "float32"
    return device, precision


def autocast(device: str, precision: str):
    """Context in which a forward pass runs in ``precision``."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def name(device: str) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def threads() -> int:
    """Threads that a CPU computation uses; sums, and so results, depend on it in the last digits."""
    return torch.get_num_threads()
