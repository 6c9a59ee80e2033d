"""Attribution: closed forms where there are any, slow twins where not."""

import itertools

import naive
import numpy as np
import pytest
import torch
from torch import nn

from cervix_utils import attribution

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 3, 8, 8)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def w() -> torch.Tensor:
    return torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def smooth_net(outputs: int = 5) -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, outputs)).double()
    network[3].weight.data *= 9
    return network


@pytest.mark.parametrize("method", ["gausslegendre"])
@pytest.mark.parametrize("kind", ["white", "blurred"])
def test_gradients_of_a_linear_function_are_w_times_the_way(pixels, w, method, kind):
    start = attribution.baseline(kind, pixels)
    maps, deltas = attribution.integrated_gradients(lambda x: (x * w).sum(dim=(1, 2, 3)), pixels, start, 4, method)
    np.testing.assert_allclose(maps, (w * (pixels - start)).sum(dim=1), rtol=0, atol=1e-12)
    assert np.abs(deltas).max() < 1e-12


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_the_printed_sum_overshoots_a_linear_function_by_one_step_and_keeps_its_shares(pixels, w, steps):
    start = attribution.baseline("white", pixels)
    f = lambda x: (x * w).sum(dim=(1, 2, 3))  # noqa: E731
    literal, deltas = attribution.integrated_gradients(f, pixels, start, steps, "literal")
    exact, _ = attribution.integrated_gradients(f, pixels, start, steps)
    np.testing.assert_allclose(literal, exact * (steps + 1) / steps, rtol=1e-6, atol=1e-9)  # captum's float32 steps
    np.testing.assert_allclose(deltas, (f(pixels) - f(start)) / steps, rtol=0, atol=1e-12)
    masks = np.random.default_rng(0).integers(0, 5, (3, 8, 8))
    shares = [attribution.mask_shares(maps, masks) for maps in (literal, exact)]
    np.testing.assert_allclose(*(share.drop(columns="usable") for share in shares), rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 33])
def test_the_printed_sum_equals_the_paper_term_by_term(pixels, steps):
    f = attribution.severity(smooth_net())
    found = attribution.integrated_gradients(f, pixels, torch.ones_like(pixels), steps, "literal")[0]
    for image, each in zip(pixels.split(1), found):
        slow = naive.literal_ig(f, image, torch.ones_like(image), steps).sum(dim=1)[0]
        np.testing.assert_allclose(each, slow, rtol=0, atol=1e-7)  # float32 softmax


@pytest.mark.parametrize("outputs", [1, 5])
def test_attributions_of_a_network_add_up_to_what_they_explain(pixels, outputs):
    f = attribution.severity(smooth_net(outputs))
    start = attribution.baseline("white", pixels)
    maps, deltas = attribution.integrated_gradients(f, pixels, start, 32)
    change = (f(pixels) - f(start)).detach().numpy()
    assert np.abs(change).min() > 0.02
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), change, rtol=0, atol=1e-5)
    np.testing.assert_allclose(deltas, maps.sum(axis=(1, 2)) - change, rtol=0, atol=1e-6)
    rough = attribution.integrated_gradients(f, pixels, start, 32, "literal")[1]
    assert np.abs(rough).min() > 100 * np.abs(deltas).max()  # the delta sees the overshoot


def test_reduced_precision_leaves_the_scores_and_nearly_leaves_the_map():
    """A smooth network, so that the gradients' rounding is all there is: maps within a few per cent, delta in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Conv2d(8, 5, 3), nn.Flatten(2))
    function = attribution.severity(lambda x: 10 * model(x).mean(dim=2))
    x = torch.rand(2, 3, 12, 12)
    exact, delta = attribution.integrated_gradients(function, x, torch.ones_like(x), 20)
    fast, loose = attribution.integrated_gradients(function, x, torch.ones_like(x), 20, precision="bf16")
    assert np.abs(delta).max() < 1e-4
    assert 0 < np.abs(fast - exact).sum() < 0.05 * np.abs(exact).sum()
    np.testing.assert_allclose(loose, fast.sum(axis=(1, 2)) - exact.sum(axis=(1, 2)), rtol=0, atol=2e-4)


def test_severity_is_the_expected_score_or_the_regressed_one(pixels):
    many, one = smooth_net(5), smooth_net(1)
    expected = [naive.expected_score(row) for row in many(pixels).tolist()]
    np.testing.assert_allclose(attribution.severity(many)(pixels).detach(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(attribution.severity(one)(pixels).detach(), one(pixels)[:, 0].detach(), atol=1e-6)


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


@pytest.mark.parametrize(("kind", "words"), [("mean", "mean picture"), ("background", "masks"), ("black", "'black'")])
def test_a_baseline_that_cannot_be_made_says_what_it_needs(kind, words):
    with pytest.raises(ValueError, match=words):
        attribution.baseline(kind, torch.rand(1, 3, 8, 8))


class Toy(nn.Module):
    """layer4 passes the first two colours on; class k is a_k times mean of the first + b_k times mean of the second."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Conv2d(3, 2, 1, bias=False)
        self.layer4.weight.data = torch.eye(3)[:2, :, None, None]
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[2.0, -1.0], [-3.0, 0.5]])

    def forward(self, x):
        return self.fc(self.layer4(x).mean(dim=(2, 3)))


@pytest.mark.parametrize("positive", [True, False])
def test_grad_cam_of_a_linear_head_is_its_weighted_channels(positive):
    pixels, target = torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 1, 0])
    toy = Toy()
    found = attribution.grad_cam(attribution.FromPixels(toy, [0, 0, 0], [1, 1, 1]), pixels, target, positive)
    expected = torch.einsum("nc,nchw->nhw", toy.fc.weight[target].detach() / 36, pixels[:, :2])
    assert (expected < 0).any() and (expected > 0).any()
    np.testing.assert_allclose(found, expected.relu() if positive else expected, rtol=0, atol=1e-6)


def test_grad_cam_is_scaled_up_to_the_picture_and_leaves_the_network_frozen():
    toy = Toy()
    toy.layer4.stride = (4, 4)
    network = attribution.FromPixels(toy, [0, 0, 0], [1, 1, 1])
    assert attribution.grad_cam(network, torch.rand(2, 3, 16, 16), torch.tensor([0, 1])).shape == (2, 16, 16)
    assert not any(p.requires_grad for p in network.parameters())


def test_grad_cam_without_layer4_says_what_it_needs():
    network = attribution.FromPixels(nn.Conv2d(3, 2, 1), [0, 0, 0], [1, 1, 1])
    with pytest.raises(ValueError, match="layer4"):
        attribution.grad_cam(network, torch.rand(1, 3, 8, 8), torch.tensor([0]))


REGIONS = ["nucleus", "cytoplasm", "background", "unknown"]


def random_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1, (4, 7, 7)), rng.integers(0, 5, (4, 7, 7))


FORMS = {"signed": lambda x: x, "absolute": np.abs, "positive": lambda x: np.where(x > 0, x, 0)}


@pytest.mark.parametrize(("form", "seed"), itertools.product(FORMS, range(3)))
def test_shares_equal_the_double_loop_and_sum_to_one(form, seed):
    maps, masks = random_maps(seed)
    found = attribution.mask_shares(maps, masks, form)
    for row, (each, mask) in enumerate(zip(maps, masks)):
        slow = naive.mask_shares(FORMS[form](each), mask)
        for name, value in slow.items():
            assert found.loc[row, name] == pytest.approx(value, abs=1e-12, rel=1e-12), name
        for region in REGIONS:
            quotient = slow[f"at_{region}"] / slow[f"area_{region}"]
            assert found.loc[row, f"per_area_{region}"] == pytest.approx(quotient, rel=1e-12)
        assert found.loc[row, "ratio"] == pytest.approx(slow["at_nucleus"] / slow["at_cytoplasm"], rel=1e-12)
    for kind in ("at", "area"):
        np.testing.assert_allclose(found[[f"{kind}_{region}" for region in REGIONS]].sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_uniform_map_gives_each_region_its_area(form):
    masks = random_maps(5)[1]
    maps = attribution.null_maps(np.zeros((4, 3, 7, 7), dtype=np.uint8))["uniform"]
    found = attribution.mask_shares(maps, masks, form)
    np.testing.assert_allclose(found[[f"per_area_{region}" for region in REGIONS]], 1, rtol=0, atol=1e-12)
    assert found["usable"].all()


def test_darkness_is_measured_against_white():
    pixels = np.zeros((1, 3, 1, 3), dtype=np.uint8)
    pixels[0, :, 0, 1], pixels[0, 0, 0, 2] = 255, 255
    np.testing.assert_allclose(attribution.null_maps(pixels)["darkness"][0, 0], [1, 0, 2 / 3], atol=1e-6)


def test_totals_near_zero_are_flagged_for_signed_shares_alone():
    maps = np.ones((3, 2, 2))
    maps[0, 0] = -1  # cancels exactly
    maps[1, 0] = -0.999  # 0.05 % of the sum of |map| is left
    masks = np.broadcast_to([[2, 2], [3, 4]], (3, 2, 2))
    assert attribution.mask_shares(maps, masks)["usable"].tolist() == [False, False, True]
    assert attribution.mask_shares(maps, masks, least=1e-4)["usable"].tolist() == [False, True, True]
    assert attribution.mask_shares(maps, masks, "absolute")["usable"].all()
    assert attribution.mask_shares(np.zeros((1, 2, 2)), masks[:1])["usable"].tolist() == [False]
    assert attribution.mask_shares(-np.ones((1, 2, 2)), masks[:1])["usable"].tolist() == [True]  # large, if negative


def test_maps_and_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 8\), masks \(2, 4, 4\)"):
        attribution.mask_shares(np.ones((2, 8, 8)), np.ones((2, 4, 4), dtype=int))
