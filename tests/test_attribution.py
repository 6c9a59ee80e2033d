"""Attribution: closed forms where there are any, slow twins where not; its arithmetic."""

import naive
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from cervix_utils.explanation import attribution
from cervix_utils.training import losses

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["white", "background", "blurred"]


def smooth_net(outputs: int = 5) -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, outputs)
    ).double()
    network[3].weight.data *= 9
    return network


def severity(network: nn.Module):
    """The severity score of a network of five classes or one output."""
    return lambda pixels: losses.score(network(pixels))


def from_pixels(model: nn.Module, grades: int = 0) -> attribution.FromPixels:
    """A network for which pixels are left as they are."""
    return attribution.FromPixels(model, [0, 0, 0], [1, 1, 1], grades)


def begin(kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """Any baseline of ``pixels``, with random masks."""
    masks = np.random.default_rng(0).integers(0, 5, (len(pixels), *pixels.shape[2:]))
    return attribution.baseline(kind, pixels, masks)


def test_every_baseline_has_a_name():
    assert attribution.BASELINES == KINDS


@pytest.mark.parametrize("outputs", [1, 5])
def test_a_network_of_pixels_answers_with_outputs_or_the_severity_score(pixels, outputs):
    network = smooth_net(outputs)
    raw = from_pixels(network)(pixels)
    np.testing.assert_allclose(raw, network(pixels).detach(), rtol=0, atol=1e-12)
    found = from_pixels(network, grades=5)(pixels)
    expected = raw[:, 0]
    if outputs == 5:
        expected = [naive.expected_score(row) for row in raw.tolist()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


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


def test_the_blurred_baseline_has_the_colours_without_the_shapes():
    pixels = torch.rand(2, 3, 16, 16)
    blurred = attribution.baseline("blurred", pixels)
    assert blurred.shape == pixels.shape and blurred.std() < 0.5 * pixels.std()
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert (attribution.baseline("blurred", flat) - flat).abs().max() < 1e-6


def test_a_picture_without_background_starts_from_the_median_of_its_edge():
    pixels = torch.rand(2, 3, 5, 5)
    masks = np.full((2, 5, 5), 2)
    masks[0, 2, 2] = 4
    found = attribution.baseline("background", pixels, masks)
    ring = [
        pixels[1, :, y, x] for side in (0, 4) for k in range(5) for y, x in ((side, k), (k, side))
    ]
    assert torch.equal(found[0, :, 0, 0], pixels[0, :, 2, 2])
    assert torch.equal(found[1, :, 3, 1], torch.stack(ring).median(dim=0).values)


def test_an_unknown_baseline_is_refused_with_those_that_are_known():
    words = "unknown baseline 'black': known are white, background, blurred"
    with pytest.raises(attribution.AttributionError, match=words):
        attribution.baseline("black", torch.rand(1, 3, 8, 8))


class Toy(nn.Module):
    """layer4 passes two colours on; class k is a_k * mean of the one + b_k * mean of the other."""

    def __init__(self, outputs: int = 5):
        super().__init__()
        self.layer4 = nn.Conv2d(3, 2, 1, bias=False)
        self.layer4.weight.data = torch.eye(3)[:2, :, None, None]
        self.fc = nn.Linear(2, outputs, bias=False)
        self.fc.weight.data = torch.tensor(
            [[2.0, -1.0], [-3.0, 0.5], [1.0, 0.0], [0.0, 4.0], [1.0, -4.0]]
        )[:outputs]

    def forward(self, x):
        return self.fc(self.layer4(x).mean(dim=(2, 3)))


def test_grad_cam_of_a_linear_head_is_the_positive_part_of_its_weighted_channels():
    pixels, target = torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 1, 0])
    toy = Toy()
    found = attribution.grad_cam(from_pixels(toy), pixels, target)
    expected = torch.einsum("nc,nchw->nhw", toy.fc.weight[target].detach() / 36, pixels[:, :2])
    assert (expected < 0).any() and (expected > 0).any()
    np.testing.assert_allclose(found, expected.relu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 5])
def test_grad_cam_without_a_target_explains_the_severity(outputs):
    pixels, toy = torch.rand(4, 3, 6, 6), Toy(outputs)
    found = attribution.grad_cam(from_pixels(toy, grades=5), pixels)
    if outputs == 1:
        slopes = torch.ones(4, 1)
    else:  # of a mean over a softmax: p_k (k - mean)
        p = toy(pixels).softmax(dim=1).detach()
        grades = torch.arange(1, 6)
        slopes = p * (grades - (p * grades).sum(dim=1, keepdim=True))
    expected = torch.einsum("nc,nchw->nhw", slopes @ toy.fc.weight.detach() / 36, pixels[:, :2])
    assert expected.max() > 0.01 > 0 > expected.min()
    np.testing.assert_allclose(found, expected.relu(), rtol=0, atol=1e-6)


def test_grad_cam_is_scaled_up_to_the_picture_and_leaves_the_network_frozen():
    toy = Toy()
    toy.layer4.stride = (4, 4)
    network = from_pixels(toy)
    assert attribution.grad_cam(network, torch.rand(2, 3, 16, 16), torch.tensor([0, 1])).shape == (
        2,
        16,
        16,
    )
    assert not any(p.requires_grad for p in network.parameters())


def test_a_network_without_a_last_convolutional_layer_is_refused_with_its_layers():
    other = nn.Sequential()
    other.body, other.fc = nn.Conv2d(3, 2, 1), nn.Linear(2, 5)
    words = "called layer4 or features or trunk_output; this one has: body, fc"
    with pytest.raises(attribution.AttributionError, match=words):
        attribution.grad_cam(from_pixels(other), torch.rand(1, 3, 8, 8))
    with pytest.raises(attribution.AttributionError, match="this one has: none"):
        attribution.grad_cam(from_pixels(nn.Conv2d(3, 2, 1)), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("architecture", ["convnext_tiny", "mobilenet_v3_small", "regnet_y_400mf"])
def test_other_architectures_are_explained_at_their_last_convolutional_layer(architecture):
    torch.manual_seed(0)
    model = get_model(architecture, weights=None, num_classes=5)
    network, pixels = (
        attribution.FromPixels(model, [0.5] * 3, [0.25] * 3, 5),
        torch.rand(2, 3, 64, 64),
    )
    found = attribution.grad_cam(network, pixels)
    assert found.shape == (2, 64, 64) and np.isfinite(found).all()
    maps = [
        attribution.grad_cam(from_pixels(model), pixels, torch.tensor([k, k])) for k in range(5)
    ]
    assert np.ptp(maps) > 0


@pytest.mark.parametrize("side", [8, 16, 20, 24])
def test_occlusion_of_a_linear_function_is_the_mean_of_the_squares_over_a_pixel(side):
    draw = torch.Generator().manual_seed(side)
    pixels, w = (
        torch.rand(2, 3, side, side, generator=draw),
        torch.randn(3, side, side, generator=draw),
    )
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


# Arithmetic


def arithmetic() -> list[bool]:
    """What may round more than float32 does."""
    devices = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    matmul = torch.backends.cuda.matmul.fp32_precision != "ieee"
    return [*devices, torch.backends.cudnn.allow_tf32, matmul]


@pytest.fixture
def rough():
    """A kernel in which an interrupted cell has left autocast on, and TF32 is allowed."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    with torch.autocast("cpu", torch.bfloat16):
        yield
    for backend, allowed in zip(backends, before):
        backend.allow_tf32 = allowed


def test_full_float32_allows_no_tf32_and_no_autocast_and_puts_back_what_was_set(rough):
    before = arithmetic()
    assert before == [True, False, True, True]
    with pytest.raises(ZeroDivisionError), attribution.full_float32():
        assert arithmetic() == [False] * 4 and torch.backends.cudnn.enabled
        _ = 1 / 0
    assert arithmetic() == before


def test_every_map_is_computed_in_full_float32(rough, small_network):
    seen = []
    network = attribution.FromPixels(small_network(), [0.5] * 3, [0.25] * 3, 5)
    network.register_forward_pre_hook(lambda *_: seen.append(arithmetic()))
    pixels = torch.rand(2, 3, 16, 16)
    white = torch.ones_like(pixels)
    for make in (
        lambda: attribution.grad_cam(network, pixels),
        lambda: attribution.occlusion(network, pixels, white),
        lambda: attribution.integrated_gradients(network, pixels, white, 4).maps,
        lambda: attribution.smoothed_gradients(network, pixels, white),
    ):
        seen.clear()
        assert make().dtype == np.float32
        assert seen and not np.any(seen)


# Integrated Gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_linear_function_are_w_times_the_way(pixels, w, kind):
    start = begin(kind, pixels)
    found = attribution.integrated_gradients(lambda x: (x * w).sum(dim=(1, 2, 3)), pixels, start, 4)
    np.testing.assert_allclose(found.maps, (w * (pixels - start)).sum(dim=1), rtol=0, atol=1e-12)
    assert np.abs(found.deltas).max() < 1e-12
    assert found.steps.tolist() == [4, 4, 4]


def test_the_sum_that_the_paper_prints_comes_to_the_same_with_many_points(pixels):
    f, points = severity(smooth_net()), 1000
    found = attribution.integrated_gradients(f, pixels, torch.ones_like(pixels)).maps
    for image, each in zip(pixels.split(1), found):
        slow = naive.literal_ig(f, image, torch.ones_like(image), points).sum(dim=1)[0]
        np.testing.assert_allclose(each, slow, rtol=0, atol=3 * np.abs(each).max() / points)


@pytest.mark.parametrize("outputs", [1, 5])
def test_attributions_of_a_network_add_up_to_what_they_explain(pixels, outputs):
    f = severity(smooth_net(outputs))
    start = attribution.baseline("white", pixels)
    maps, deltas, _ = attribution.integrated_gradients(f, pixels, start, 32)
    change = (f(pixels) - f(start)).detach().numpy()
    assert np.abs(change).min() > 0.02
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), change, rtol=0, atol=1e-5)
    np.testing.assert_allclose(deltas, maps.sum(axis=(1, 2)) - change, rtol=0, atol=1e-6)


def test_gradients_averaged_over_noise_are_the_mean_of_those_of_noisy_images(pixels):
    """Of a linear function noise averages to w times the way, plus w times the mean noise."""
    w = torch.full((3, 8, 8), 0.5, dtype=pixels.dtype)
    linear = lambda x: (x * w).sum(dim=(1, 2, 3))  # noqa: E731
    start, state = torch.ones_like(pixels), torch.get_rng_state()
    found = attribution.smoothed_gradients(linear, pixels, start)
    assert torch.equal(torch.get_rng_state(), state)
    noise = found - (w * (pixels - start)).sum(dim=1).numpy()
    spread = 0.5 * 0.1 * np.sqrt(3 / 5)  # three colours, five copies
    assert noise.std() == pytest.approx(spread, rel=0.2) and abs(noise.mean()) < spread
    np.testing.assert_array_equal(attribution.smoothed_gradients(linear, pixels, start), found)


def test_noise_changes_the_map_of_a_function_that_bends_and_no_more_than_it_bends(pixels):
    f, start = severity(smooth_net()), torch.ones_like(pixels)
    plain = attribution.integrated_gradients(f, pixels, start).maps
    found = attribution.smoothed_gradients(f, pixels, start)
    assert found.shape == plain.shape and (found != plain).all()
    assert np.corrcoef(found.ravel(), plain.ravel())[0, 1] > 0.8


def wave(x: torch.Tensor) -> torch.Tensor:
    """Harder to integrate the further an image is from 0: the sine of 20 times its mean."""
    return torch.sin(20 * x.mean(dim=(1, 2, 3)))


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_steps_are_added_to_the_images_that_need_them_and_no_others():
    images = flat(0.0, 0.05, 0.3, 1.0)
    found = attribution.integrated_gradients(wave, images, 0 * images, 2, bound=1e-3)
    assert np.abs(found.deltas).max() <= 1e-3
    assert found.steps[0] == 2 and found.steps[3] > found.steps[2] > 2
    for index, image in enumerate(images.split(1)):
        alone = attribution.integrated_gradients(wave, image, 0 * image, 2, bound=1e-3)
        assert found.steps[index] == alone.steps[0]
        np.testing.assert_allclose(found.maps[index], alone.maps[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            found.maps[index].sum(), wave(image) - wave(0 * image), rtol=0, atol=1e-3
        )


def test_steps_go_where_the_function_bends():
    places = []

    def late(x):
        """Flat up to 0.75 of the way, a wave behind."""
        if x.requires_grad:
            places.extend(x[:, 0, 0, 0].tolist())
        return torch.sin(40 * (x.mean(dim=(1, 2, 3)) - 0.75).clamp(min=0))

    found = attribution.integrated_gradients(late, flat(1.0), flat(0.0), 8, bound=1e-3)
    kept = np.array(places)
    assert abs(found.deltas[0]) <= 1e-3
    assert (kept < 0.75).sum() == 6 and (
        kept > 0.75
    ).sum() > 20  # the first six points are enough before it


def test_errors_that_cancel_do_not_pass_for_convergence():
    f = lambda x: torch.cos(6 * np.pi * x.mean(dim=(1, 2, 3)))  # noqa: E731
    loose = attribution.integrated_gradients(f, flat(1.0), flat(0.0), 4)
    assert abs(loose.deltas[0]) < 1e-9  # the two halves are wrong by as much, with opposite signs
    found = attribution.integrated_gradients(f, flat(1.0), flat(0.0), 4, bound=1e-3)
    assert found.steps[0] > 16


@pytest.mark.parametrize("n", [1, 8, 9, 17])
def test_any_number_of_images_comes_back_in_order(n):
    images = flat(*np.linspace(0.1, 1, n))
    found = attribution.integrated_gradients(wave, images, 0 * images, 40)
    assert found.maps.shape == (n, 4, 4) and found.steps.tolist() == [40] * n
    np.testing.assert_allclose(
        found.maps.sum(axis=(1, 2)), wave(images) - wave(0 * images), rtol=0, atol=1e-3
    )


def test_steps_end_at_the_most_that_is_allowed_and_the_delta_says_so(monkeypatch):
    monkeypatch.setattr(attribution, "MOST", 20)
    images = flat(0.0, 1.0)
    found = attribution.integrated_gradients(wave, images, 0 * images, 3, bound=1e-6)
    assert found.steps[0] == 2 and 12 <= found.steps[1] <= 20
    assert abs(found.deltas[1]) > 1e-6


def test_gradients_that_are_not_finite_are_refused_with_the_image(pixels):
    with pytest.raises(attribution.AttributionError, match="image 0 are not finite"):
        attribution.integrated_gradients(lambda x: wave(x) * np.nan, pixels, 0 * pixels, 2)
    pixels[1, 0, 0, 0] = np.nan
    with pytest.raises(attribution.AttributionError, match=r"image 1 are not finite.*damaged"):
        attribution.integrated_gradients(wave, pixels, torch.zeros_like(pixels), 2)
