"""The losses of paper H, sections 3.2.1 to 3.2.3, and what a network's output means.

Outputs are (n, n_classes) logits, or (n, 1) severity scores for the regression pipeline. Targets
are class indices 0..n_classes-1 (int64); the severity of class index i is i + 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def score(output: Tensor) -> Tensor:
    """Severity (n,) of any output: the regressed value, or the expected one sum_i i p_i,
    1..n_classes."""
    if output.shape[1] == 1:
        return output.float()[:, 0]
    severity = torch.arange(1, output.shape[1] + 1, device=output.device, dtype=torch.float32)
    weighted = output.float().softmax(dim=1) * severity
    return weighted.sum(dim=1)  # no matrix product: autocast would round it


class Loss(nn.Module):
    """CE(p; y) + w (y - s)^2, paper H, section 3.2.3, as fastai asks for it: it also says what an
    output means.

    ``loss``: cross_entropy (the first term alone), squared_error (the second alone) or combined
    (both, w being ``regression_weight``).
    """

    y_int = True  # targets are class indices: fastai's MixUp mixes losses, not targets

    def __init__(self, loss: str, n_classes: int, regression_weight: float = 1.0):
        super().__init__()
        self.n_classes, self.reduction = n_classes, "mean"
        weights = {"squared_error": (0.0, 1.0), "combined": (1.0, regression_weight)}
        self.classification, self.regression = weights.get(loss, (1.0, 0.0))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over a batch, or (n,) where ``reduction`` is ``none``."""
        output, target = output.as_subclass(Tensor).float(), target.as_subclass(Tensor)
        loss = torch.zeros(len(target), device=output.device)
        if self.classification:
            loss = loss + F.cross_entropy(output, target, reduction="none")
        if self.regression:
            loss = loss + self.regression * (target + 1 - score(output)) ** 2
        return loss.mean() if self.reduction == "mean" else loss

    def activation(self, output: Tensor) -> Tensor:
        """What is predicted: class probabilities (n, n_classes), or the score (n, 1)."""
        output = output.as_subclass(Tensor).float()
        return output if output.shape[1] == 1 else output.softmax(dim=1)

    def decodes(self, predicted: Tensor) -> Tensor:
        """Class index (n,): the most probable, or the score rounded and clipped to 1..n_classes."""
        if predicted.shape[1] > 1:
            return predicted.argmax(dim=1)
        return predicted[:, 0].round().clamp(1, self.n_classes).long() - 1

    def accuracy(self, output: Tensor, target: Tensor) -> Tensor:
        """Share of right classes, a scalar in 0..1."""
        return (self.decodes(self.activation(output)) == target).float().mean()
