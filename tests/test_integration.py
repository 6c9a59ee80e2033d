"""Integrated Gradients: closed forms, the paper's printed sum, and steps that follow the function."""

import naive
import numpy as np
import pytest
import torch
from test_attribution import KINDS, begin, smooth_net
from torch import nn

from cervix_utils import attribution, integration, regions

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["gausslegendre", "trapezoid"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_linear_function_are_w_times_the_way(pixels, w, method, kind):
    start = begin(kind, pixels)
    found = integration.integrated_gradients(lambda x: (x * w).sum(dim=(1, 2, 3)), pixels, start, 4, method)
    np.testing.assert_allclose(found.maps, (w * (pixels - start)).sum(dim=1), rtol=0, atol=1e-12)
    assert np.abs(found.deltas).max() < 1e-12
    assert found.steps.tolist() == [4, 4, 4]


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_the_printed_sum_overshoots_a_linear_function_by_one_step_and_keeps_its_shares(pixels, w, steps):
    start = attribution.baseline("white", pixels)
    f = lambda x: (x * w).sum(dim=(1, 2, 3))  # noqa: E731
    literal = integration.integrated_gradients(f, pixels, start, steps, "literal", bound=1e-9)
    exact = integration.integrated_gradients(f, pixels, start, steps)
    np.testing.assert_allclose(literal.maps, exact.maps * (steps + 1) / steps, rtol=0, atol=1e-6)  # captum's float32
    np.testing.assert_allclose(literal.deltas, (f(pixels) - f(start)) / steps, rtol=0, atol=1e-12)
    assert literal.steps.tolist() == [steps] * 3  # no bound applies
    masks = np.random.default_rng(0).integers(0, 5, (3, 8, 8))
    shares = [regions.mask_shares(maps, masks) for maps in (literal.maps, exact.maps)]
    np.testing.assert_allclose(*(share.drop(columns="usable") for share in shares), rtol=1e-6)


@pytest.mark.parametrize("steps", [3, 33])
def test_the_printed_sum_equals_the_paper_term_by_term(pixels, steps):
    f = attribution.Severity(smooth_net())
    found = integration.integrated_gradients(f, pixels, torch.ones_like(pixels), steps, "literal").maps
    for image, each in zip(pixels.split(1), found):
        slow = naive.literal_ig(f, image, torch.ones_like(image), steps).sum(dim=1)[0]
        np.testing.assert_allclose(each, slow, rtol=0, atol=1e-7)  # float32 softmax


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", [1, 5])
def test_attributions_of_a_network_add_up_to_what_they_explain(pixels, outputs, method):
    f = attribution.Severity(smooth_net(outputs))
    start = attribution.baseline("white", pixels)
    maps, deltas, _ = integration.integrated_gradients(f, pixels, start, 32, method)
    change = (f(pixels) - f(start)).detach().numpy()
    assert np.abs(change).min() > 0.02
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), change, rtol=0, atol=1e-5 if method == "gausslegendre" else 1e-3)
    np.testing.assert_allclose(deltas, maps.sum(axis=(1, 2)) - change, rtol=0, atol=1e-6)
    rough = integration.integrated_gradients(f, pixels, start, 32, "literal").deltas
    assert np.abs(rough).min() > 10 * np.abs(deltas).max()  # the delta sees the overshoot


def wave(x: torch.Tensor) -> torch.Tensor:
    """Harder to integrate the further an image is from 0: the sine of 20 times its mean."""
    return torch.sin(20 * x.mean(dim=(1, 2, 3)))


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_added_to_the_images_that_need_them_and_no_others(method):
    images = flat(0.0, 0.05, 0.3, 1.0)
    found = integration.integrated_gradients(wave, images, 0 * images, 2, method, bound=1e-3)
    assert np.abs(found.deltas).max() <= 1e-3
    assert found.steps[0] == 2 and found.steps[3] > found.steps[2] > 2
    for index, image in enumerate(images.split(1)):
        alone = integration.integrated_gradients(wave, image, 0 * image, 2, method, bound=1e-3)
        assert found.steps[index] == alone.steps[0]
        np.testing.assert_allclose(found.maps[index], alone.maps[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.maps[index].sum(), wave(image) - wave(0 * image), rtol=0, atol=1e-3)


def test_steps_go_where_the_function_bends():
    places = []

    def late(x):
        """Flat up to 0.75 of the way, a wave behind."""
        if x.requires_grad:
            places.extend(x[:, 0, 0, 0].tolist())
        return torch.sin(40 * (x.mean(dim=(1, 2, 3)) - 0.75).clamp(min=0))

    found = integration.integrated_gradients(late, flat(1.0), flat(0.0), 8, bound=1e-3)
    kept = np.array(places)
    assert abs(found.deltas[0]) <= 1e-3
    assert (kept < 0.75).sum() == 6 and (kept > 0.75).sum() > 20  # the first six points are enough before it


def test_errors_that_cancel_do_not_pass_for_convergence():
    f = lambda x: torch.cos(6 * np.pi * x.mean(dim=(1, 2, 3)))  # noqa: E731
    loose = integration.integrated_gradients(f, flat(1.0), flat(0.0), 4)
    assert abs(loose.deltas[0]) < 1e-9  # the two halves are wrong by as much, with opposite signs
    found = integration.integrated_gradients(f, flat(1.0), flat(0.0), 4, bound=1e-3)
    assert found.steps[0] > 16


@pytest.mark.parametrize("n", [1, 8, 9, 17])
def test_any_number_of_images_comes_back_in_order(n):
    images = flat(*np.linspace(0.1, 1, n))
    found = integration.integrated_gradients(wave, images, 0 * images, 40)
    assert found.maps.shape == (n, 4, 4) and found.steps.tolist() == [40] * n
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), wave(images) - wave(0 * images), rtol=0, atol=1e-3)


def test_steps_end_at_the_most_that_is_allowed_and_the_delta_says_so():
    images = flat(0.0, 1.0)
    found = integration.integrated_gradients(wave, images, 0 * images, 3, "trapezoid", bound=1e-6, most=20)
    assert found.steps[0] == 2 and 12 <= found.steps[1] <= 20
    assert abs(found.deltas[1]) > 1e-6


def test_a_baseline_of_another_shape_is_refused(pixels):
    with pytest.raises(
        attribution.AttributionError, match=r"shape \(1, 3, 8, 8\), the images \(3, 3, 8, 8\): give one"
    ):
        integration.integrated_gradients(wave, pixels, pixels[:1])


def test_an_unknown_rule_of_integration_is_refused_with_those_that_are_known(pixels):
    with pytest.raises(attribution.AttributionError, match=r"'simpson'.*gausslegendre, trapezoid, literal"):
        integration.integrated_gradients(wave, pixels, pixels, method="simpson")


@pytest.mark.parametrize("method", ["gausslegendre", "trapezoid", "literal"])
def test_gradients_that_are_not_finite_are_refused_with_the_image(pixels, method):
    with pytest.raises(attribution.AttributionError, match="image 0 are not finite"):
        integration.integrated_gradients(lambda x: wave(x) * np.nan, pixels, 0 * pixels, 2, method)
    pixels[1, 0, 0, 0] = np.nan
    with pytest.raises(attribution.AttributionError, match=r"image 1 are not finite.*damaged"):
        integration.integrated_gradients(wave, pixels, torch.zeros_like(pixels), 2, method)


def test_reduced_precision_leaves_the_scores_and_nearly_leaves_the_map():
    """A smooth network, so that the gradients' rounding is all there is: maps within a few per cent, delta in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Conv2d(8, 5, 3), nn.Flatten(2))
    function = attribution.Severity(lambda x: 10 * model(x).mean(dim=2))
    x = torch.rand(2, 3, 12, 12)
    exact, delta, _ = integration.integrated_gradients(function, x, torch.ones_like(x), 20)
    fast, loose, _ = integration.integrated_gradients(function, x, torch.ones_like(x), 20, precision="bf16")
    assert np.abs(delta).max() < 1e-4
    assert 0 < np.abs(fast - exact).sum() < 0.05 * np.abs(exact).sum()
    np.testing.assert_allclose(loose, fast.sum(axis=(1, 2)) - exact.sum(axis=(1, 2)), rtol=0, atol=2e-4)
