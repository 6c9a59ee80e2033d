"""Measures of faithfulness: closed forms for linear functions, slow twins, controls that must come out at 0."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from cervix_utils import attribution, explanations, faithfulness, integration

pytestmark = pytest.mark.usefixtures("one_thread")

N, SIDE = 3, 8


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def start() -> torch.Tensor:
    return torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def w() -> torch.Tensor:
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def linear(w):
    return lambda x: (x * w).sum(dim=(1, 2, 3)) + 2


@pytest.fixture
def exact(w, pixels, start) -> np.ndarray:
    """What each pixel of ``linear`` is worth."""
    return ((pixels - start) * w).sum(dim=1).numpy()


def curved(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x[:, :, ::2]).sum(dim=(1, 2, 3)) * x.mean(dim=(1, 2, 3))


# Deletion and insertion


def slow_curve(function, image: torch.Tensor, start: torch.Tensor, order: np.ndarray, points: int) -> list[float]:
    """One image's curve, pixel by pixel."""
    found = []
    for k in range(points + 1):
        mixed = image.clone()
        for place in order[: round(k * SIDE**2 / points)]:
            mixed[:, place // SIDE, place % SIDE] = start[:, place // SIDE, place % SIDE]
        found.append(float(function(mixed[None])))
    return found


@pytest.mark.parametrize("points", [1, 4, 16, 64])
def test_a_curve_equals_a_loop_over_pixels_from_the_image_to_its_baseline(pixels, start, points):
    order = np.stack([np.random.default_rng(k).permutation(SIDE**2) for k in range(N)])
    before = pixels.clone()
    found = faithfulness.curve(curved, pixels, start, order, points)
    assert found.shape == (N, points + 1) and torch.equal(pixels, before)
    slow = [slow_curve(curved, *each, points) for each in zip(pixels, start, order)]
    np.testing.assert_allclose(found, slow, rtol=0, atol=1e-5)  # curves are float32
    np.testing.assert_allclose(found[:, 0], curved(pixels), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[:, -1], curved(start), rtol=0, atol=1e-5)
    assert np.abs(found[:, 0] - found[:, -1]).min() > 0.1


def test_the_curves_of_a_linear_function_are_sums_of_the_largest_values(pixels, start, linear, exact):
    found = faithfulness.deletion_insertion(linear, pixels, start, exact, points=16)
    steps = np.sort(exact.reshape(N, -1), axis=1)[:, ::-1].cumsum(axis=1)
    gone = np.concatenate([np.zeros((N, 1)), steps[:, 3::4]], axis=1)  # 4 of 64 pixels at a time
    np.testing.assert_allclose(found["deletion"], linear(pixels).numpy()[:, None] - gone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["insertion"], linear(start).numpy()[:, None] + gone, rtol=0, atol=1e-5)


def test_pixels_of_equal_value_go_in_reading_order(pixels, start):
    flat = faithfulness.deletion_insertion(curved, pixels, start, np.zeros((N, SIDE, SIDE)), 8)
    order = np.tile(np.arange(SIDE**2), (N, 1))
    np.testing.assert_array_equal(flat["deletion"], faithfulness.curve(curved, pixels, start, order, 8))


def test_the_exact_map_of_a_linear_function_is_beaten_by_no_other_order(pixels, start, linear, exact):
    control = faithfulness.deletion_insertion(linear, pixels, start, faithfulness.random_orders(exact, 0))
    gain = lambda maps: faithfulness.gains(  # noqa: E731
        faithfulness.deletion_insertion(linear, pixels, start, maps), control
    )
    best = gain(exact)
    assert list(best) == ["deletion", "insertion"] and len(best) == N and (best > 0.1).all(axis=None)
    others = [-exact, np.abs(exact), np.zeros_like(exact), pixels.numpy().mean(axis=1)]
    others += [faithfulness.random_orders(exact, seed) for seed in range(1, 20)]
    for other in others:
        assert (gain(other) < best - 1e-3).all(axis=None)
    assert (gain(-exact) < -0.1).all(axis=None)
    np.testing.assert_allclose(gain(np.exp(3 * exact)), best, rtol=0, atol=1e-6)  # the order alone counts


def test_the_control_gains_nothing_over_itself_and_the_others_are_means_of_distances(pixels, start, exact):
    control = faithfulness.deletion_insertion(curved, pixels, start, faithfulness.random_orders(exact, 0))
    assert (faithfulness.gains(control, control) == 0).all(axis=None)
    moved = {"deletion": control["deletion"] - 0.5, "insertion": control["insertion"] + [[0.25], [0.0], [-1.0]]}
    found = faithfulness.gains(moved, control)
    np.testing.assert_allclose(found["deletion"], 0.5, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["insertion"], [0.25, 0, -1], rtol=0, atol=1e-6)


def test_random_orders_are_seeded_and_differ_from_image_to_image(exact):
    one, again, other = (faithfulness.random_orders(exact, seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, again)
    assert one.shape == exact.shape and (one != other).all()
    orders = one.reshape(N, -1).argsort(axis=1)
    assert (orders[0] != orders[1]).any() and np.unique(one).size == one.size


# Infidelity


def slow_infidelity(function, pixels, start, maps, samples: int, seed: int) -> list[float]:
    """Least squares over the same squares, drawn and shown one by one."""
    draw, found = np.random.default_rng(seed), []
    for image, origin, values in zip(pixels, start, maps):
        sums, falls = [], []
        for _ in range(samples):
            width = draw.integers(1, SIDE // 2 + 1)
            y, x = draw.integers(0, SIDE - width + 1, 2)
            view = np.s_[..., y : y + width, x : x + width]
            shown = image.clone()
            shown[view] = origin[view]
            sums.append(values[view].sum())
            falls.append(float(function(image[None]) - function(shown[None])))
        scale = np.dot(sums, falls) / np.dot(sums, sums)
        found.append(np.mean((scale * np.array(sums) - falls) ** 2))
    return found


def test_infidelity_is_least_squares_over_random_squares(pixels, start, exact):
    maps = np.random.default_rng(7).normal(size=exact.shape)
    found = faithfulness.infidelity(curved, pixels, start, maps, samples=9, seed=3)
    np.testing.assert_allclose(found, slow_infidelity(curved, pixels, start, maps, 9, 3), rtol=1e-9)
    assert (found > 1e-3).all()


def test_infidelity_of_the_exact_map_of_a_linear_function_is_0_whatever_its_scale(pixels, start, linear, exact):
    for scale in (1, 7, 1e-3, -2):
        np.testing.assert_allclose(
            faithfulness.infidelity(linear, pixels, start, scale * exact), np.zeros(N), rtol=0, atol=1e-6
        )


def test_infidelity_does_not_change_with_the_unit_of_a_map_and_sees_a_wrong_one(pixels, start, linear, exact):
    noise = np.random.default_rng(0).normal(size=exact.shape)
    little, much = (faithfulness.infidelity(linear, pixels, start, exact + size * noise) for size in (0.1, 1))
    assert (little > 1e-4).all() and (much > 5 * little).all()
    again = faithfulness.infidelity(linear, pixels, start, 50 * (exact + noise))
    np.testing.assert_allclose(again, much, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_captum_has_nothing_to_say_about_few_or_many_images(pixels, start, linear, exact, n):
    some = np.resize(np.arange(N), n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = faithfulness.infidelity(linear, pixels[some], start[some], exact[some])
    np.testing.assert_allclose(found, np.zeros(n), rtol=0, atol=1e-6)


def test_a_map_of_nothing_leaves_all_of_the_fall_unexplained(pixels, start, linear, exact):
    found = faithfulness.infidelity(linear, pixels, start, np.zeros_like(exact))
    assert np.isfinite(found).all() and (found > 1e-2).all()


def test_infidelity_is_seeded(pixels, start, linear):
    maps = np.random.default_rng(0).normal(size=(N, SIDE, SIDE))
    one, again, other = (faithfulness.infidelity(linear, pixels, start, maps, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()


# Sensitivity


def test_an_explanation_that_never_changes_has_no_sensitivity(pixels):
    for value in (0.0, 3.0):
        found = faithfulness.max_sensitivity(lambda x, v=value: np.full((len(x), SIDE, SIDE), v), pixels)
        assert found.tolist() == [0] * N


def test_sensitivity_of_a_linear_explanation_is_the_noise_over_the_map():
    """The sum of three colours' noise, each even in +-0.02, has the spread 0.02: over s x s pixels a norm of 0.02 s."""
    side = 48
    pixels = torch.rand(N, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = faithfulness.max_sensitivity(lambda x: x.sum(dim=1).numpy(), pixels)
    expected = 0.02 * side / pixels.sum(dim=1).flatten(1).norm(dim=1)
    np.testing.assert_allclose(found, expected, rtol=0.04)
    np.testing.assert_allclose(faithfulness.max_sensitivity(lambda x: -9 * x.sum(dim=1).numpy(), pixels), found, 1e-5)


def test_more_samples_of_noise_find_no_smaller_change_and_the_same_seed_the_same(pixels):
    explain = lambda x: x.sum(dim=1).numpy()  # noqa: E731
    one, again, other = (faithfulness.max_sensitivity(explain, pixels[:1], 4, seed) for seed in (0, 0, 1))
    assert one == again and one != other
    assert faithfulness.max_sensitivity(explain, pixels[:1], 40) >= one


# Everything of a network


@pytest.fixture
def explained(small_network, few_cells, tmp_path):
    explain = explanations.Explainer(tmp_path, "k", steps=4)
    network = small_network()
    starts = [explain(network, few_cells, "integrated_gradients", kind) for kind in ("white", "mean")]
    return [
        *starts,
        explanations.average(starts),
        explain(network, few_cells, "grad_cam"),
        explain(network, few_cells, "occlusion", "background"),
    ]


def test_sensitivities_are_of_each_image_with_its_own_baseline(small_network, few_cells, explained):
    network, few = small_network(), few_cells.first(3)
    found = faithfulness.sensitivities(network, few, explained, steps=4)
    assert list(found) == ["integrated gradients, white", "integrated gradients, mean", "grad cam"]
    score, start = attribution.Severity(network), few.mean[None]
    ways = {
        "grad cam": lambda x: attribution.grad_cam(network, x),
        "integrated gradients, mean": lambda x: integration.integrated_gradients(score, x, start.expand_as(x), 4).maps,
    }
    for name, way in ways.items():
        slow = [faithfulness.max_sensitivity(way, few.pixels[k : k + 1], seed=k)[0] for k in range(3)]
        np.testing.assert_allclose(found[name], slow, rtol=1e-5)
        assert (found[name] > 0).all() and found[name].shape == (3,)


def test_a_guided_map_and_a_baseline_of_its_own_are_measured_too(small_network, few_cells, explained, tmp_path):
    network = small_network(1)
    explain = explanations.Explainer(tmp_path, "other", steps=4)
    both = [explain(network, few_cells, "guided_grad_cam"), explain(network, few_cells, "integrated_gradients", "background")]  # fmt: skip
    found = faithfulness.sensitivities(network, few_cells.first(3), both, 4)
    assert list(found) == ["guided grad cam", "integrated gradients, background"]
    assert all(np.isfinite(values).all() and values.shape == (3,) for values in found.values())


def test_every_method_is_measured_on_the_same_images_against_one_random_order(small_network, few_cells, explained):
    network, few = small_network(), few_cells.first(3)
    ways, each = faithfulness.measure(network, few, explained, "white", steps=4, seed=5)
    names = [one.name for one in explained]
    assert list(ways) == ["deletion", "insertion"] and list(each) == [*names, "random order"]
    score, pixels, start = attribution.Severity(network), few.pixels, few.baseline("white")
    for lines in ways.values():
        assert list(lines) == [*names, "random order"]
        assert all(line.shape == (3, 17) for line in lines.values())
    for line in ways["deletion"].values():
        np.testing.assert_allclose(line[:, 0], score(pixels), rtol=0, atol=1e-5)
        np.testing.assert_allclose(line[:, -1], score(start), rtol=0, atol=1e-5)
    for name, table in each.items():
        assert list(table) == ["deletion", "insertion", "infidelity", "max_sensitivity"] and len(table) == 3
        assert table.drop(columns="max_sensitivity").notna().all(axis=None)
        lines = [{way: ways[way][of] for way in ways} for of in (name, "random order")]
        np.testing.assert_array_equal(table[["deletion", "insertion"]], faithfulness.gains(*lines))
        measured = name in ("integrated gradients, white", "integrated gradients, mean", "grad cam")
        assert table["max_sensitivity"].notna().all() == measured == table["max_sensitivity"].notna().any()
    assert (each["random order"][["deletion", "insertion"]] == 0).all(axis=None)
    cam = explained[3].on(few)
    expected = faithfulness.infidelity(score, pixels, start, cam.maps, seed=5)
    np.testing.assert_array_equal(each["grad cam"]["infidelity"], expected)
    again = faithfulness.measure(network, few, explained[3:4], "white", steps=4, seed=5)[1]
    np.testing.assert_allclose(again["grad cam"], each["grad cam"], rtol=1e-6)


def test_an_image_without_a_map_is_named(small_network, few_cells, explained):
    short = [replace(explained[0].on(few_cells.first(3)))]
    with pytest.raises(attribution.AttributionError, match="integrated gradients, white: image i1 is not among those"):
        faithfulness.measure(small_network(), few_cells, short, "white", 4, 0)
