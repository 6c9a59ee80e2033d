"""The losses of paper H sections 3.2.1 to 3.2.3, two ordinal rivals, and what a network's output means.

Outputs are (n, n_classes) logits; (n, 1) severity scores for the regression pipeline; or (n, n_classes - 1) logits of
"beyond class k, given beyond class k - 1" for CORN. Targets are class indices 0..n_classes-1 (int64); the severity of
class index i is i + 1.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F


def n_outputs(pipeline: str, n_classes: int) -> int:
    """Outputs of a pipeline's network: 1 for regression, one less than the classes for CORN, else one a class."""
    return {"regression": 1, "corn": n_classes - 1}.get(pipeline, n_classes)


def probabilities(output: Tensor, n_classes: int) -> Tensor:
    """Class probabilities (n, n_classes) of logits: softmax, or for CORN (n_classes - 1 columns) differences of the
    products of its conditional probabilities (Shi, Cao and Raschka 2023, section 3.3)."""
    if output.shape[1] == n_classes:
        return output.float().softmax(dim=1)
    beyond = output.float().sigmoid().cumprod(dim=1)  # P(y > k), never increasing
    edge = torch.ones_like(beyond[:, :1])
    return torch.cat([edge, beyond], dim=1) - torch.cat([beyond, 0 * edge], dim=1)


def score(output: Tensor, n_classes: int = 5) -> Tensor:
    """Severity (n,) of any kind of output: the regressed value, or the expected severity sum_i i p_i, 1..n_classes."""
    if output.shape[1] == 1:
        return output.float()[:, 0]
    severity = torch.arange(1, n_classes + 1, device=output.device, dtype=torch.float32)
    return (probabilities(output, n_classes) * severity).sum(dim=1)  # no matrix product: autocast would round it


def predicted_class(output: Tensor, n_classes: int = 5) -> Tensor:
    """Class index (n,): the most probable one, or the regressed score rounded and clipped to 1..``n_classes``."""
    if output.shape[1] > 1:
        return probabilities(output, n_classes).argmax(dim=1)
    return score(output).round().clamp(1, n_classes).long() - 1


def accuracy(output: Tensor, target: Tensor, n_classes: int = 5) -> Tensor:
    """Share of right classes, a scalar in 0..1."""
    return (predicted_class(output, n_classes) == target).float().mean()


def severity_loss(output: Tensor, target: Tensor, classification: float, regression: float, reduction="mean") -> Tensor:
    """``classification`` * CE(p; y) + ``regression`` * (y - s)^2, paper H section 3.2.3 (weights 1 and 1 there)."""
    loss = torch.zeros(len(target), device=output.device)
    if classification:
        loss = loss + classification * F.cross_entropy(output.float(), target, reduction="none")
    if regression:
        loss = loss + regression * (target + 1 - score(output)) ** 2
    return loss if reduction == "none" else getattr(loss, reduction)()


def loss_of(pipeline: str, regression_weight: float = 1.0, n_classes: int = 5) -> Callable[..., Tensor]:
    """The loss of a pipeline: ``classification``, ``regression``, ``combined`` (also ``combined_w<weight>``), ``corn``
    (Shi, Cao and Raschka 2023) or ``soft_labels`` (triangular ordinal targets, Vargas et al. 2023), both dlordinal's
    with its defaults; others (colposcopy) classify."""
    if pipeline in ("corn", "soft_labels"):
        from dlordinal import losses as ordinal  # here: seconds to import, and only these two need it

        plain = torch.nn.CrossEntropyLoss()
        return ordinal.CORNLoss(n_classes) if pipeline == "corn" else ordinal.TriangularLoss(plain, n_classes)
    kind = pipeline.partition("_")[0]
    weights = {"regression": (0.0, 1.0), "combined": (1.0, regression_weight)}.get(kind, (1.0, 0.0))
    return partial(severity_loss, classification=weights[0], regression=weights[1])
