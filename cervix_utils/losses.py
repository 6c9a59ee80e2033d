"""The losses of paper H sections 3.2.1 to 3.2.3, from one formula, and what a network's output means.

Outputs are (n, n_classes) logits, or (n, 1) severity scores for the regression pipeline. Targets are class indices
0..n_classes-1 (int64); the severity of class index i is i + 1.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

PIPELINES = ["classification", "regression", "combined"]


def expected_score(logits: Tensor) -> Tensor:
    """Expected severity sum_i i p_i, shape (n,), range 1..n_classes; p = softmax of ``logits`` (n, n_classes)."""
    severity = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=torch.float32)
    return (logits.float().softmax(dim=1) * severity).sum(dim=1)  # no matrix product: autocast would round it


def score(output: Tensor) -> Tensor:
    """Severity score (n,) of either kind of output: the regressed value, or the expected severity."""
    return output.float()[:, 0] if output.shape[1] == 1 else expected_score(output)


def predicted_class(output: Tensor, n_classes: int = 5) -> Tensor:
    """Class index (n,): argmax of logits, or the rounded score clipped to 1..``n_classes`` (DOMAIN: regressor)."""
    if output.shape[1] > 1:
        return output.argmax(dim=1)
    return score(output).round().clamp(1, n_classes).long() - 1


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of right classes, a scalar in 0..1."""
    return (predicted_class(output) == target).float().mean()


def severity_loss(output: Tensor, target: Tensor, classification: float, regression: float, reduction="mean") -> Tensor:
    """``classification`` * CE(p; y) + ``regression`` * (y - s)^2, paper H section 3.2.3 (weights 1 and 1 there)."""
    loss = torch.zeros(len(target), device=output.device)
    if classification:
        loss = loss + classification * F.cross_entropy(output.float(), target, reduction="none")
    if regression:
        loss = loss + regression * (target + 1 - score(output)) ** 2
    return loss if reduction == "none" else getattr(loss, reduction)()


def loss_of(pipeline: str, regression_weight: float = 1.0) -> Callable[..., Tensor]:
    """The loss of a pipeline: ``classification``, ``regression`` or ``combined``; others (colposcopy) classify."""
    weights = {"regression": (0.0, 1.0), "combined": (1.0, regression_weight)}.get(pipeline, (1.0, 0.0))
    return partial(severity_loss, classification=weights[0], regression=weights[1])
