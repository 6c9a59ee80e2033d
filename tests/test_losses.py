"""Losses, scores and classes against their slow twins."""

import naive
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cervix_utils.training import losses, recipes

PAIRS = [("cross_entropy", 5, (1, 0)), ("squared_error", 1, (0, 1)), ("combined", 5, (1, 0.7))]


def outputs(n: int, k: int) -> torch.Tensor:
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(n + k))


@pytest.mark.parametrize(("loss", "k", "weights"), [*PAIRS, ("cross_entropy", 3, (1, 0))])
def test_one_formula_serves_every_pipeline(loss, k, weights):
    output, target = outputs(6, k), torch.tensor([0, 1, 2, 0, 1, 2])
    criterion = losses.Loss(loss, max(k, 3), 0.7)
    rows = zip(output.tolist(), target.tolist())
    slow = [naive.severity_loss(row, label, *weights) for row, label in rows]
    assert criterion(output, target).item() == pytest.approx(np.mean(slow), rel=1e-5)
    criterion.reduction = "none"
    np.testing.assert_allclose(criterion(output, target), slow, rtol=1e-5)


@pytest.mark.parametrize(("loss", "k"), [(loss, k) for loss, k, _ in PAIRS])
def test_gradients_equal_finite_differences(loss, k):
    output, target = outputs(4, k).requires_grad_(), torch.tensor([0, 4, 2, 1])
    criterion = losses.Loss(loss, 5)
    criterion(output, target).backward()
    for i, j in np.ndindex(4, k):
        step = torch.zeros(4, k)
        step[i, j] = 1e-2
        rise = criterion(output + step, target) - criterion(output - step, target)
        assert output.grad[i, j].item() == pytest.approx(rise.item() / 2e-2, abs=2e-3)


def test_the_expected_score_equals_its_twin_and_reaches_the_ends_of_the_scale():
    output = outputs(20, 5)
    slow = [naive.expected_score(row) for row in output.tolist()]
    np.testing.assert_allclose(losses.score(output), slow, rtol=1e-6)
    assert losses.score(100 * torch.eye(5)).tolist() == [1, 2, 3, 4, 5]
    assert losses.score(torch.zeros(1, 5)).item() == pytest.approx(3, abs=1e-6)
    assert losses.score(100 * torch.eye(3)).tolist() == [1, 2, 3]
    assert losses.score(torch.tensor([[2.5], [-1.0]])).tolist() == [2.5, -1.0]


def test_the_score_is_not_rounded_by_autocast():
    output = outputs(20, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.score(output), losses.score(output.clone()))
        rounded = losses.score(output)
    torch.testing.assert_close(rounded, losses.score(output), rtol=1e-6, atol=0)


def test_classes_and_accuracy_of_both_kinds_of_output():
    criterion = losses.Loss("squared_error", 5)
    scores = torch.tensor([[-2.0], [1.4], [1.6], [4.4], [9.0]])
    assert criterion.decodes(criterion.activation(scores)).tolist() == [0, 0, 1, 3, 4]
    assert criterion.accuracy(scores, torch.tensor([0, 0, 1, 4, 4])).item() == pytest.approx(0.8)
    criterion = losses.Loss("combined", 5)
    target = torch.tensor([0, 1, 2, 3, 0])
    assert criterion.accuracy(torch.eye(5), target).item() == pytest.approx(0.8)


@pytest.mark.parametrize(("loss", "k"), [("combined", 5), ("cross_entropy", 3)])
def test_what_is_predicted_are_probabilities(loss, k):
    found = losses.Loss(loss, k).activation(outputs(7, k))
    torch.testing.assert_close(found, outputs(7, k).softmax(dim=1))


def test_cross_entropy_is_pytorchs():
    output, target = outputs(8, 3), torch.arange(8) % 3
    found = losses.Loss("cross_entropy", 3)(output, target)
    assert found.item() == pytest.approx(F.cross_entropy(output, target).item(), rel=1e-6)


@pytest.mark.parametrize("pipeline", recipes.PIPELINES)
def test_every_pipeline_names_a_loss_that_exists(pipeline):
    loss = recipes.PIPELINES[pipeline].loss
    output = outputs(4, 1 if pipeline == "regression" else 5).requires_grad_()
    value = losses.Loss(loss, 5)(output, torch.arange(4))
    value.backward()
    assert value.shape == () and output.grad.abs().sum() > 0
