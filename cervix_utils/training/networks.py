"""Architectures and initial weights: torchvision networks with new heads, grown, folded,
described."""

import copy
import hashlib
import json
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models

from cervix_utils import paths

IMAGENET = "IMAGENET1K_V1"  # the weights of torchvision that ``imagenet`` means


class WeightsError(ValueError):
    """Weights cannot be had or do not fit; the message names the file and the remedy."""


def grow_resnet101(resnet50: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet-101 state dict that computes the same as ``resnet50`` (torchvision keys) at the
    start.

    Blocks 6..22 of layer3 are copies of block 5 whose last batch norm is zero: each adds nothing to
    its input until it is trained (zero-initialised residual branches, Goyal et al. 2017, section
    5.1).
    """
    grown = dict(resnet50)
    block5 = {key: value for key, value in resnet50.items() if key.startswith("layer3.5.")}
    for block in range(6, 23):
        for key, value in block5.items():
            zero = "bn3.weight" in key or "bn3.bias" in key
            fresh = torch.zeros_like(value) if zero else value.clone()
            grown[key.replace("layer3.5.", f"layer3.{block}.")] = fresh
    return grown


def weights_file(path: str | Path) -> Path:
    """The file behind a path; WeightsError where there is none."""
    file = paths.resolve(path)
    if not file.is_file():
        raise WeightsError(f"there is no file {file}: give a path, 'imagenet' or 'none'")
    return file


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict in float32 from a .safetensors file or a .pth file that holds tensors alone."""
    file = weights_file(path)
    try:
        is_safe = file.suffix == ".safetensors"
        state = load_file(file) if is_safe else torch.load(file, "cpu", weights_only=True)
        kinds = {(type(key), isinstance(value, Tensor)) for key, value in state.items()}
        if kinds != {(str, True)}:
            raise TypeError("not only names and tensors")
    except Exception as error:  # whatever a damaged file makes of its reader
        raise WeightsError(
            f"{file} holds no plain state dict (name -> tensor) and was not loaded "
            f"({type(error).__name__}): save model.state_dict()"
        ) from None
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise WeightsError(f"{file}: {broken[0]} is not finite (NaN or infinity): save it again")
    return {key: value.float() for key, value in state.items()}


def initial_state(weights: str, architecture: str) -> dict[str, Tensor] | None:
    """The state dict behind a recipe's ``weights``, None for 'none'. WeightsError with the
    remedy."""
    if weights == "none":
        return None
    if weights == "imagenet":
        return _imagenet_state(architecture)
    if not weights.startswith("grown:"):
        return read_weights(weights)
    origin = initial_state(weights.removeprefix("grown:"), "resnet50")
    if origin is None:
        raise WeightsError("weights_resnet101=grown grows from a ResNet-50: give weights_resnet50")
    return grow_resnet101(origin)


def _imagenet_state(architecture: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights, downloaded on first use."""
    weights = models.get_model_weights(architecture)[IMAGENET]
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"cannot download ImageNet weights ({error}). Fetch {weights.url} on another machine "
            f"and put it into {folder}, or give weights_{architecture}=/path/to/state_dict.pth"
        ) from None


def describe_weights(weights: str, architecture: str) -> str:
    """Honest wording of an initialisation: what it is, never where it lies on this disk."""
    if weights == "none":
        return f"{architecture}, random initialisation (no pretraining)"
    if weights == "imagenet":
        return f"{architecture}, torchvision {IMAGENET}"
    if weights.startswith("grown:"):
        origin = describe_weights(weights.removeprefix("grown:"), "resnet50")
        return f"{architecture} grown from: {origin}"
    file = weights_file(weights)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    record = file.with_name("recipe.json")
    if record.is_file():  # a run folder: what was trained there, and from what
        first = json.loads(record.read_text())
        trained = "{task}, {pipeline}, {protocol}-{fold}".format_map(first)
        return f"{architecture} trained on {trained} (sha256 {digest}) from: {first['weights']}"
    return f"{architecture}, state dict {file.name} (sha256 {digest})"


def last_layer(model: nn.Module, architecture: str) -> str:
    """Name of the linear layer that gives the answer; WeightsError where a network has none."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or "inception" in architecture or architecture == "googlenet":
        raise WeightsError(f"{architecture} does not end in one linear layer: take e.g. resnet50")
    return linear[-1]


def network(architecture: str, head: str, n_outputs: int, state: dict | None = None) -> nn.Module:
    """A torchvision network with a new head of ``n_outputs``; ``state`` fills all but the head.

    ``paper``: features-100-ReLU-n, the softmax being in the loss (paper C, section 3.2);
    ``linear``: features-n. A single output starts at 3, the middle of the severity scale.
    ``model.head_name`` says where the head is. Raises WeightsError where ``state`` is of another
    network.
    """
    if architecture not in models.list_models(models):
        raise WeightsError(f"torchvision has no network '{architecture}': see its list of models")
    residual = architecture.startswith(("resnet", "resnext", "wide_resnet"))
    steady = {"zero_init_residual": True} if residual else {}  # Goyal et al. 2017
    model = models.get_model(architecture, weights=None, **steady)
    model.head_name = last_layer(model, architecture)
    if state is not None:
        _fill(model, state, architecture)
    width = model.get_submodule(model.head_name).in_features
    layers = [nn.Linear(width, n_outputs)]
    if head == "paper":
        layers = [nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, n_outputs)]
    model.set_submodule(model.head_name, nn.Sequential(*layers))
    if n_outputs == 1:
        nn.init.constant_(layers[-1].bias, 3.0)
    return model


def _fill(model: nn.Module, state: dict[str, Tensor], architecture: str) -> None:
    """Load all of ``state`` but the head; WeightsError where names or shapes are of another
    network."""
    head = f"{model.head_name}."
    own = {key: value for key, value in model.state_dict().items() if key.startswith(head)}
    given = {key: value for key, value in state.items() if not key.startswith(head)}
    try:
        model.load_state_dict(given | own)
    except RuntimeError as error:
        wrong = " ".join(str(error).partition(":")[2].split())[:200]
        said = f"the weights are not of a {architecture} ({wrong})"
        raise WeightsError(f"{said}: give weights of a {architecture}") from None


def body_and_head(model: nn.Module) -> list[list[nn.Parameter]]:
    """Two parameter groups for discriminative learning rates: all but the head, and the head."""
    head = list(model.get_submodule(model.head_name).parameters())
    of_head = {id(parameter) for parameter in head}
    body = [parameter for parameter in model.parameters() if id(parameter) not in of_head]
    return [body, head]


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy for evaluation alone; in a ResNet each batch norm is folded into the convolution
    before it."""
    folded = copy.deepcopy(model).eval()
    if not isinstance(folded, models.ResNet):
        return folded
    for block in list(folded.modules()):
        for name, norm in list(block.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                before = name.replace("bn", "conv") if name.startswith("bn") else str(int(name) - 1)
                setattr(block, before, fuse_conv_bn_eval(getattr(block, before), norm))
                setattr(block, name, nn.Identity())
    return folded.to(memory_format=torch.channels_last)
