"""Architectures and initial weights: torchvision ResNets with new heads, folded for evaluation, grown, described."""

import copy
import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cervix_utils import paths

IMAGENET = {"resnet50": "ResNet50_Weights.IMAGENET1K_V1", "resnet101": "ResNet101_Weights.IMAGENET1K_V1"}


class WeightsError(ValueError):
    """The initial weights cannot be had or do not fit; the message names the file and the remedy."""


def grow_resnet101(resnet50: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet-101 state dict that computes the same function as ``resnet50`` (torchvision keys) at the start.

    Blocks 6..22 of layer3 are copies of block 5 whose last batch norm is zero, so that each adds nothing to its input
    until it is trained (zero-initialised residual branches, Goyal et al. 2017, section 5.1).
    """
    grown = dict(resnet50)
    for block in range(6, 23):
        for key, value in resnet50.items():
            if key.startswith("layer3.5."):
                fresh = torch.zeros_like(value) if "bn3.weight" in key or "bn3.bias" in key else value.clone()
                grown[key.replace("layer3.5.", f"layer3.{block}.")] = fresh
    return grown


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict in float32 from a .safetensors file or a .pth file that holds tensors and nothing else."""
    file = paths.resolve(path)
    if not file.is_file():
        raise WeightsError(f"weights file {file} does not exist: give an existing path, 'imagenet' or 'none'")
    try:
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and file.read_bytes()[:1] in (b"P", b"\x80"):  # zip or pickle
            raise WeightsError(
                f"{file} is a pickle that holds more than tensors; it was not loaded: save a state dict"
            ) from None
        raise WeightsError(f"{file} cannot be read as a state dict ({type(error).__name__}): save it again") from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{file} holds no plain state dict (name -> tensor): save model.state_dict()")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def initial_state(weights: str, architecture: str) -> dict[str, Tensor] | None:
    """The state dict behind a recipe's ``weights``, None for 'none'. Raises WeightsError with the remedy."""
    if weights == "none":
        return None
    if weights.startswith("grown:"):
        if (origin := initial_state(weights.removeprefix("grown:"), "resnet50")) is None:
            raise WeightsError(
                "weights_resnet101=grown needs the ResNet-50 to grow from: give weights_resnet50 as well"
            )
        return grow_resnet101(origin)
    if weights != "imagenet":
        return read_weights(weights)
    from torchvision.models import get_weight  # here: torchvision takes two seconds to import

    enum = get_weight(IMAGENET[architecture])
    try:
        return enum.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"cannot download ImageNet weights ({error}). Fetch {enum.url} on another machine and put it into {folder}, "
            f"or give weights_{architecture}=/path/to/state_dict.pth (or none)"
        ) from None


def describe_weights(weights: str, architecture: str) -> str:
    """Honest wording of an initialisation, for reports: what it is, never where it lies on this disk."""
    if weights == "none":
        return f"{architecture}, random initialisation (no pretraining)"
    if weights == "imagenet":
        return f"{architecture}, torchvision {IMAGENET[architecture]}"
    if weights.startswith("grown:"):
        return f"resnet101 grown from: {describe_weights(weights.removeprefix('grown:'), 'resnet50')}"
    file = paths.resolve(weights)
    return f"{architecture}, state dict {file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"


def network(architecture: str, head: str, n_outputs: int, state: dict[str, Tensor] | None = None) -> nn.Module:
    """A torchvision ResNet with a new head of ``n_outputs``; ``state`` fills all but the head.

    ``paper``: 2048-100-ReLU-n, the softmax being in the loss (paper C, section 3.2); ``linear``: 2048-n. A single
    output starts at 3, the middle of the severity scale. Raises WeightsError where ``state`` is of another network.
    """
    from torchvision.models import get_model  # here: torchvision takes two seconds to import

    model = get_model(architecture, weights=None, zero_init_residual=True)  # Goyal et al. 2017: steadier from scratch
    if state is not None:
        own = model.state_dict()
        other = {key: value for key, value in state.items() if not key.startswith("fc.")}
        wrong = [key for key, value in other.items() if key not in own or own[key].shape != value.shape]
        missing = [key for key in own if key not in other and not key.startswith("fc.") and "num_batches" not in key]
        if wrong or missing:
            example = (wrong + missing)[0]
            raise WeightsError(
                f"the weights are not of a {architecture}: {len(missing)} entries missing, {len(wrong)} unexpected or of "
                f"another shape (first: {example}): give weights of a {architecture}"
            )
        model.load_state_dict(other, strict=False)
    width = model.fc.in_features
    layers = (
        [nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, n_outputs)]
        if head == "paper"
        else [nn.Linear(width, n_outputs)]
    )
    model.fc = nn.Sequential(*layers)
    if n_outputs == 1:
        nn.init.constant_(layers[-1].bias, 3.0)
    return model


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy of a torchvision ResNet for evaluation alone, each batch norm folded into the convolution before it."""
    folded = copy.deepcopy(model).eval()
    for block in list(folded.modules()):
        for name, norm in list(block.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                before = name.replace("bn", "conv") if name.startswith("bn") else str(int(name) - 1)
                setattr(block, before, fuse_conv_bn_eval(getattr(block, before), norm))
                setattr(block, name, nn.Identity())
    return folded.to(memory_format=torch.channels_last)
