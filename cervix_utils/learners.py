"""Table + recipe -> fastai Learner: ResNet-50 with paper C's head, ResNet-101 with the three pipelines of paper H."""

import copy
import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import torch
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorImage, params, set_seed
from fastai.vision.augment import aug_transforms
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model, get_weight

from cervix_utils import decoded, losses, paths
from cervix_utils.recipes import Recipe

IMAGENET = {"resnet50": "ResNet50_Weights.IMAGENET1K_V1", "resnet101": "ResNet101_Weights.IMAGENET1K_V1"}


class WeightsError(ValueError):
    """The initial weights cannot be had or do not fit; the message names the file and the remedy."""


class Squares:
    """One part of a split: pictures in the cache of decoded ones, and class indices (int64)."""

    def __init__(self, split: pd.DataFrame, part: str, classes: list[str], pictures: decoded.Decoded):
        self.pictures, self.rows = pictures, np.flatnonzero(split["part"] == part)
        self.split_idx = 0 if part == "train" else 1  # fastai augments where this is 0
        codes = pd.Categorical(split["label"].iloc[self.rows], categories=classes).codes
        self.targets = torch.from_numpy(codes.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[TensorImage, Tensor]:
        pictures, targets = self.batch([index])
        return pictures[0], targets[0]

    def batch(self, indices: list[int]) -> tuple[TensorImage, Tensor]:
        """(uint8 (n, 3, size, size) in channels_last, class indices (n,)): a whole batch is read at once."""
        return TensorImage(torch.from_numpy(self.pictures[self.rows[indices]])), self.targets[indices]


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


def n_outputs(recipe: Recipe) -> int:
    """1 for the regression pipeline, else one a class."""
    return 1 if recipe.pipeline == "regression" else len(recipe.classes)


def body_and_head(model: nn.Module) -> list[list[nn.Parameter]]:
    """Two parameter groups for discriminative learning rates: all but ``fc``, and ``fc``."""
    return [[p for child in list(model.children())[:-1] for p in params(child)], params(model.fc)]


def augmentations(recipe: Recipe) -> list:
    """fastai batch transforms of the recipe's augmentation; one resampling, edges continued, lighting in logit space."""
    if recipe.flip == "none" and not (recipe.rotate or recipe.lighting) and recipe.zoom == 1:
        return []
    return aug_transforms(
        do_flip=recipe.flip != "none",
        flip_vert=recipe.flip == "both",
        max_rotate=recipe.rotate,
        max_zoom=recipe.zoom,
        max_lighting=recipe.lighting,
        max_warp=0.0,
        pad_mode="border",
        p_affine=1.0,
    )


def dataloaders(split: pd.DataFrame, recipe: Recipe, device: torch.device) -> DataLoaders:
    """Training batches shuffled and augmented, validation batches as they are; both normalised, on ``device``."""
    normalize = Normalize.from_stats(recipe.mean, recipe.std, cuda=False)
    normalize.mean, normalize.std = normalize.mean.to(device), normalize.std.to(device)
    pictures = decoded.open_squares(split, recipe.image_size)
    data = {part: Squares(split, part, recipe.classes, pictures) for part in ("train", "valid")}
    loaders = [
        TfmdDL(
            data[part],
            bs=min(recipe.batch_size, len(data[part])),
            shuffle=part == "train",
            drop_last=part == "train",  # batch statistics of a last batch of one image are noise
            num_workers=0,
            device=device,
            create_item=lambda index: index or 0,  # batches are read whole (None: fastai asks for any)
            create_batch=data[part].batch,
            retain=lambda batch, _: batch,
            after_batch=[IntToFloatTensor(), *(augmentations(recipe) if part == "train" else []), normalize],
        )
        for part in data
    ]
    return DataLoaders(*loaders, device=device)


def optimiser(recipe: Recipe) -> Callable[..., OptimWrapper]:
    """PyTorch's fused SGD or AdamW under fastai's interface: on a CPU several times faster than fastai's own."""
    options = {"momentum": recipe.momentum} if recipe.optimiser == "sgd" else {"betas": (recipe.momentum, 0.99)}
    kind = torch.optim.SGD if recipe.optimiser == "sgd" else torch.optim.AdamW
    return partial(OptimWrapper, opt=kind, fused=True, weight_decay=recipe.weight_decay, **options)


def build(split: pd.DataFrame, recipe: Recipe, device: str = "cpu") -> Learner:
    """The fastai Learner of a recipe, untrained, on a table with a ``part`` column (see ``splits.assign_parts``)."""
    set_seed(recipe.seed, reproducible=True)
    state = initial_state(recipe.weights, recipe.architecture)
    model = network(recipe.architecture, recipe.head, n_outputs(recipe), state)
    return Learner(
        dataloaders(split, recipe, torch.device(device)),
        model.to(device),
        loss_func=losses.loss_of(recipe.pipeline, recipe.regression_weight),
        opt_func=optimiser(recipe),
        splitter=body_and_head,
        metrics=losses.accuracy,
    )
