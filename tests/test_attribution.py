"""Attribution: closed forms where there are any, slow twins where not."""

import naive
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from cervix_utils import attribution

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 3, 8, 8)
KINDS = ["white", "background", "mean", "blurred"]


def smooth_net(outputs: int = 5) -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, outputs)).double()
    network[3].weight.data *= 9
    return network


def begin(kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """Any baseline of ``pixels``, with random masks and a random mean picture."""
    masks = np.random.default_rng(0).integers(0, 5, (len(pixels), *pixels.shape[2:]))
    return attribution.baseline(kind, pixels, masks, torch.rand(pixels.shape[1:]))


def test_every_baseline_has_a_name():
    assert attribution.BASELINES == KINDS


def test_severity_is_the_expected_score_or_the_regressed_one(pixels):
    many, one = smooth_net(5), smooth_net(1)
    expected = [naive.expected_score(row) for row in many(pixels).tolist()]
    np.testing.assert_allclose(attribution.Severity(many)(pixels).detach(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(attribution.Severity(one)(pixels).detach(), one(pixels)[:, 0].detach(), atol=1e-6)


def test_white_is_white_before_normalisation():
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = attribution.to_float(np.zeros((2, 3, 8, 8), dtype=np.uint8))
    white = attribution.baseline("white", pixels)
    seen = []
    network = nn.Conv2d(3, 1, 1)
    network.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    attribution.FromPixels(network, mean, std)(white)
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    assert (seen[0] - expected.view(1, 3, 1, 1)).abs().max() < 1e-6


def test_pixels_become_floats_from_zero_to_one():
    found = attribution.to_float(np.array([0, 51, 255], dtype=np.uint8))
    assert found.dtype == torch.float32 and found.tolist() == [0, pytest.approx(0.2), 1]


def test_background_is_the_mean_colour_of_each_cells_own_background():
    masks = np.full((2, 4, 4), 2)
    masks[0, 0], masks[1, :, 0] = 4, 4
    pixels = torch.rand(2, 3, 4, 4)
    found = attribution.baseline("background", pixels, masks)
    expected = torch.stack([pixels[0, :, 0].mean(dim=1), pixels[1, :, :, 0].mean(dim=1)])
    assert found.shape == pixels.shape
    assert (found - expected[:, :, None, None]).abs().max() < 1e-6


def test_the_other_baselines():
    pixels = torch.rand(2, 3, 16, 16)
    mean = torch.rand(3, 16, 16)
    assert torch.equal(attribution.baseline("mean", pixels, mean=mean), torch.stack([mean, mean]))
    blurred = attribution.baseline("blurred", pixels)
    assert blurred.shape == pixels.shape and blurred.std() < 0.5 * pixels.std()
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert (attribution.baseline("blurred", flat) - flat).abs().max() < 1e-6


def test_a_picture_without_background_starts_from_the_median_of_its_edge():
    pixels = torch.rand(2, 3, 5, 5)
    masks = np.full((2, 5, 5), 2)
    masks[0, 2, 2] = 4
    found = attribution.baseline("background", pixels, masks)
    ring = [pixels[1, :, y, x] for side in (0, 4) for k in range(5) for y, x in ((side, k), (k, side))]
    assert torch.equal(found[0, :, 0, 0], pixels[0, :, 2, 2])
    assert torch.equal(found[1, :, 3, 1], torch.stack(ring).median(dim=0).values)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mean", "needs a mean picture"),
        ("background", "needs masks"),
        ("black", "'black' is unknown: known are white, background, mean, blurred"),
    ],
)
def test_a_baseline_that_cannot_be_made_says_what_it_needs(kind, words):
    with pytest.raises(attribution.AttributionError, match=words):
        attribution.baseline(kind, torch.rand(1, 3, 8, 8))


class Toy(nn.Module):
    """layer4 passes the first two colours on; class k is a_k times mean of the first + b_k times mean of the second."""

    def __init__(self, outputs: int = 5):
        super().__init__()
        self.layer4 = nn.Conv2d(3, 2, 1, bias=False)
        self.layer4.weight.data = torch.eye(3)[:2, :, None, None]
        self.fc = nn.Linear(2, outputs, bias=False)
        self.fc.weight.data = torch.tensor([[2.0, -1.0], [-3.0, 0.5], [1.0, 0.0], [0.0, 4.0], [1.0, -4.0]])[:outputs]

    def forward(self, x):
        return self.fc(self.layer4(x).mean(dim=(2, 3)))


def from_pixels(model: nn.Module) -> attribution.FromPixels:
    """Pixels are left as they are."""
    return attribution.FromPixels(model, [0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize("positive", [True, False])
def test_grad_cam_of_a_linear_head_is_its_weighted_channels(positive):
    pixels, target = torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 1, 0])
    toy = Toy()
    found = attribution.grad_cam(from_pixels(toy), pixels, target, positive)
    expected = torch.einsum("nc,nchw->nhw", toy.fc.weight[target].detach() / 36, pixels[:, :2])
    assert (expected < 0).any() and (expected > 0).any()
    np.testing.assert_allclose(found, expected.relu() if positive else expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 5])
def test_grad_cam_without_a_target_explains_the_severity(outputs):
    pixels, toy = torch.rand(4, 3, 6, 6), Toy(outputs)
    found = attribution.grad_cam(from_pixels(toy), pixels, positive=False)
    if outputs == 1:
        slopes = torch.ones(4, 1)
    else:  # of a mean over a softmax: p_k (k - mean)
        p = toy(pixels).softmax(dim=1).detach()
        slopes = p * (torch.arange(1, 6) - (p * torch.arange(1, 6)).sum(dim=1, keepdim=True))
    expected = torch.einsum("nc,nchw->nhw", slopes @ toy.fc.weight.detach() / 36, pixels[:, :2])
    assert expected.abs().max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_grad_cam_is_scaled_up_to_the_picture_and_leaves_the_network_frozen():
    toy = Toy()
    toy.layer4.stride = (4, 4)
    network = from_pixels(toy)
    assert attribution.grad_cam(network, torch.rand(2, 3, 16, 16), torch.tensor([0, 1])).shape == (2, 16, 16)
    assert not any(p.requires_grad for p in network.parameters())


def test_grad_cam_shows_its_grid_where_nothing_is_smoothed():
    toy = Toy()
    toy.layer4.stride = (4, 4)
    pixels = torch.rand(2, 3, 16, 16)
    grid, smooth = (attribution.grad_cam(from_pixels(toy), pixels, enlarge=how) for how in ("nearest", "bilinear"))
    assert len(np.unique(grid[0])) > 4
    np.testing.assert_array_equal(grid, np.kron(grid[:, ::4, ::4], np.ones((4, 4))))
    assert (smooth != grid).any()


@pytest.mark.parametrize("method", [attribution.grad_cam, attribution.guided_grad_cam])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(method):
    with pytest.raises(attribution.AttributionError, match=r"'layer9'.*this one has: layer4, fc"):
        method(from_pixels(Toy()), torch.rand(1, 3, 8, 8), layer="layer9")
    with pytest.raises(attribution.AttributionError, match=r"'layer4'.*this one has: none"):
        method(from_pixels(nn.Conv2d(3, 2, 1)), torch.rand(1, 3, 8, 8))


@pytest.fixture(scope="module")
def residual() -> attribution.FromPixels:
    """A small ResNet as torchvision builds it, with random weights."""
    torch.manual_seed(0)
    return attribution.FromPixels(resnet18(num_classes=5), [0.5, 0.5, 0.5], [0.25, 0.25, 0.25])


@pytest.mark.parametrize("target", [None, torch.tensor([3, 1])])
def test_guided_grad_cam_is_guided_gradients_times_grad_cam(residual, target):
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = attribution.guided_grad_cam(residual, pixels, target)
    f = attribution.Severity(residual) if target is None else lambda x: residual(x)[torch.arange(2), target]
    guided = naive.guided_gradients(residual, f, pixels)
    expected = (guided * attribution.grad_cam(residual, pixels, target)[:, None]).sum(axis=1)
    assert found.shape == (2, 64, 64) and np.isfinite(found).all() and np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_guided_grad_cam_leaves_the_network_as_it_was(residual):
    pixels = torch.rand(2, 3, 32, 32)
    before = residual(pixels)
    attribution.guided_grad_cam(residual, pixels)
    parts = list(residual.modules())
    assert torch.equal(residual(pixels), before)
    assert all(part.inplace for part in parts if isinstance(part, nn.ReLU))
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)


@pytest.mark.parametrize("side", [8, 16, 20, 24])
def test_occlusion_of_a_linear_function_is_the_mean_of_the_squares_over_a_pixel(side):
    draw = torch.Generator().manual_seed(side)
    pixels, w = torch.rand(2, 3, side, side, generator=draw), torch.randn(3, side, side, generator=draw)
    start = begin("background", pixels)
    found = attribution.occlusion(lambda x: (x * w).sum(dim=(1, 2, 3)), pixels, start)
    worth = (w * (pixels - start)).sum(dim=1).numpy()
    expected = [naive.occlusion(each, max(side // 8, 2), max(side // 8, 2) // 2) for each in worth]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_occlusion_of_one_class_is_that_of_its_output():
    model, pixels = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), torch.rand(2, 3, 8, 8)
    found = attribution.occlusion(model, pixels, torch.ones_like(pixels), torch.tensor([1, 0]))
    for row, target in enumerate([1, 0]):
        alone = pixels[row : row + 1], torch.ones_like(pixels[:1])
        expected = attribution.occlusion(lambda x, target=target: model(x)[:, target], *alone)[0]
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-6)
