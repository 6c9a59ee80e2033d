"""The losses of paper H sections 3.2.1 to 3.2.3, two ordinal rivals, and what an output means.

Outputs are (n, n_classes) logits; (n, 1) severity scores for the regression pipeline; or
(n, n_classes - 1) logits of "beyond class k, given beyond class k - 1" for CORN. Targets are class
indices 0..n_classes-1 (int64); the severity of class index i is i + 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def n_outputs(loss: str, n_classes: int) -> int:
    """Outputs of a network: 1 for a score, one less than the classes for CORN, else one a class."""
    return {"squared_error": 1, "corn": n_classes - 1}.get(loss, n_classes)


def probabilities(output: Tensor, n_classes: int) -> Tensor:
    """Class probabilities (n, n_classes) of logits: softmax, or for CORN (n_classes - 1 columns)
    differences of products of conditional probabilities (Shi, Cao and Raschka 2023, section
    3.3)."""
    if output.shape[1] == n_classes:
        return output.float().softmax(dim=1)
    beyond = output.float().sigmoid().cumprod(dim=1)  # P(y > k), never increasing
    edge = torch.ones_like(beyond[:, :1])
    return torch.cat([edge, beyond], dim=1) - torch.cat([beyond, 0 * edge], dim=1)


def score(output: Tensor, n_classes: int = 5) -> Tensor:
    """Severity (n,) of any output: the regressed value, or the expected one sum_i i p_i,
    1..n_classes."""
    if output.shape[1] == 1:
        return output.float()[:, 0]
    severity = torch.arange(1, n_classes + 1, device=output.device, dtype=torch.float32)
    weighted = probabilities(output, n_classes) * severity
    return weighted.sum(dim=1)  # no matrix product: autocast would round it


def severity_loss(
    output: Tensor, target: Tensor, classification: float, regression: float
) -> Tensor:
    """(n,) ``classification`` * CE(p; y) + ``regression`` * (y - s)^2, paper H section 3.2.3."""
    loss = torch.zeros(len(target), device=output.device)
    if classification:
        loss = loss + classification * F.cross_entropy(output.float(), target, reduction="none")
    if regression:
        loss = loss + regression * (target + 1 - score(output, output.shape[1])) ** 2
    return loss


class Loss(nn.Module):
    """A pipeline's loss as fastai asks for it: it also says what an output means.

    ``loss``: cross_entropy, squared_error, combined, corn (Shi, Cao and Raschka 2023) or
    soft_labels (triangular ordinal targets, Vargas et al. 2023); the last two are dlordinal's with
    its defaults.
    """

    y_int = True  # targets are class indices: fastai's MixUp mixes losses, not targets

    def __init__(self, loss: str, n_classes: int, regression_weight: float = 1.0):
        super().__init__()
        self.n_classes, self.reduction, self.ordinal = n_classes, "mean", None
        kinds = {"squared_error": (0.0, 1.0), "combined": (1.0, regression_weight)}
        self.weights = kinds.get(loss, (1.0, 0.0))
        if loss in ("corn", "soft_labels"):
            from dlordinal import losses as dlordinal  # here: seconds to import, rarely needed

            plain = nn.CrossEntropyLoss()
            corn = loss == "corn"
            make = dlordinal.CORNLoss if corn else dlordinal.TriangularLoss
            self.ordinal = make(n_classes) if corn else make(plain, n_classes)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over a batch, or (n,) where ``reduction`` is ``none``."""
        output, target = output.as_subclass(Tensor).float(), target.as_subclass(Tensor)
        if self.ordinal is None:
            loss = severity_loss(output, target, *self.weights)
            return loss.mean() if self.reduction == "mean" else loss
        if self.reduction == "mean":
            return self.ordinal(output, target)
        pairs = zip(output.split(1), target.split(1))
        return torch.stack([self.ordinal(row, label) for row, label in pairs])

    def activation(self, output: Tensor) -> Tensor:
        """What is predicted: class probabilities (n, n_classes), or the score (n, 1)."""
        if output.shape[1] == 1:
            return output.float()
        return probabilities(output.as_subclass(Tensor), self.n_classes)

    def decodes(self, predicted: Tensor) -> Tensor:
        """Class index (n,): the most probable, or the score rounded and clipped to 1..n_classes."""
        if predicted.shape[1] > 1:
            return predicted.argmax(dim=1)
        return predicted[:, 0].round().clamp(1, self.n_classes).long() - 1

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        """Share of right classes, a scalar in 0..1."""
        return (self.decodes(self.activation(output)) == target).float().mean()
