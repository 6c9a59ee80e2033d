"""Faithfulness: closed forms for linear functions, slow twins, controls that must come out at 0."""

import warnings

import numpy as np
import pytest
import torch

from cervix_utils.explanation import attribution, faithfulness, maps

pytestmark = pytest.mark.usefixtures("one_thread")

N, SIDE = 3, 8


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(
        N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.fixture
def start() -> torch.Tensor:
    return torch.rand(
        N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


@pytest.fixture
def w() -> torch.Tensor:
    return torch.randn(
        3, SIDE, SIDE, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )


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


def slow_curve(function, image, start, values: np.ndarray) -> list[float]:
    """One image's curve, pixel by pixel, the largest value first."""
    order = sorted(range(SIDE**2), key=lambda place: -values.flat[place])
    scores, points = [], faithfulness.POINTS
    for k in range(points + 1):
        mixed = image.clone()
        for place in order[: round(k * SIDE**2 / points)]:
            mixed[:, place // SIDE, place % SIDE] = start[:, place // SIDE, place % SIDE]
        scores.append(float(function(mixed[None])))
    return scores


@pytest.mark.parametrize("points", [1, 4, 16, 64])
def test_a_curve_equals_a_loop_over_pixels_from_the_image_to_its_baseline(
    pixels, start, points, monkeypatch
):
    monkeypatch.setattr(faithfulness, "POINTS", points)
    values = np.random.default_rng(0).integers(0, 20, (N, SIDE, SIDE))  # ties: in reading order
    before = pixels.clone()
    curves = faithfulness.curve(curved, pixels, start, values)
    assert curves.shape == (N, points + 1) and torch.equal(pixels, before)
    slow = [slow_curve(curved, *one) for one in zip(pixels, start, values)]
    np.testing.assert_allclose(curves, slow, rtol=0, atol=1e-5)  # curves are float32
    np.testing.assert_allclose(curves[:, 0], curved(pixels), rtol=0, atol=1e-5)
    np.testing.assert_allclose(curves[:, -1], curved(start), rtol=0, atol=1e-5)
    assert np.abs(curves[:, 0] - curves[:, -1]).min() > 0.1


def test_the_curves_of_a_linear_function_are_sums_of_the_largest_values(
    pixels, start, linear, exact
):
    steps = np.sort(exact.reshape(N, -1), axis=1)[:, ::-1].cumsum(axis=1)
    gone = np.concatenate([np.zeros((N, 1)), steps[:, 3::4]], axis=1)  # 4 of 64 pixels at a time
    fall = faithfulness.curve(linear, pixels, start, exact)
    gain = faithfulness.curve(linear, start, pixels, exact)
    np.testing.assert_allclose(fall, linear(pixels).numpy()[:, None] - gone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gain, linear(start).numpy()[:, None] + gone, rtol=0, atol=1e-5)


def test_the_exact_map_of_a_linear_function_is_beaten_by_no_other_order(
    pixels, start, linear, exact
):
    def both(values: np.ndarray) -> np.ndarray:
        fall = faithfulness.curve(linear, pixels, start, values).mean(axis=1)
        return np.array([-fall, faithfulness.curve(linear, start, pixels, values).mean(axis=1)])

    best = both(exact)
    others = [-exact, np.abs(exact), np.zeros_like(exact), pixels.numpy().mean(axis=1)]
    others += [np.random.default_rng(seed).random(exact.shape) for seed in range(20)]
    for other in others:
        assert (both(other) < best - 1e-3).all()
    np.testing.assert_allclose(both(np.exp(3 * exact)), best, rtol=0, atol=1e-6)  # order alone


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


def test_infidelity_of_the_exact_map_of_a_linear_function_is_0_whatever_its_scale(
    pixels, start, linear, exact
):
    for scale in (1, 7, 1e-3, -2):
        np.testing.assert_allclose(
            faithfulness.infidelity(linear, pixels, start, scale * exact),
            np.zeros(N),
            rtol=0,
            atol=1e-6,
        )


def test_infidelity_does_not_change_with_the_unit_of_a_map_and_sees_a_wrong_one(
    pixels, start, linear, exact
):
    noise = np.random.default_rng(0).normal(size=exact.shape)
    little, much = (
        faithfulness.infidelity(linear, pixels, start, exact + size * noise) for size in (0.1, 1)
    )
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
    one, again, other = (
        faithfulness.infidelity(linear, pixels, start, maps, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()


# Sensitivity


def test_an_explanation_that_never_changes_has_no_sensitivity(pixels):
    for value in (0.0, 3.0):
        found = faithfulness.max_sensitivity(
            lambda x, v=value: np.full((len(x), SIDE, SIDE), v), pixels
        )
        assert found.tolist() == [0] * N


def test_sensitivity_of_a_linear_explanation_is_the_noise_over_the_map():
    """The sum of three colours' noise, each even in +-0.02, has the spread 0.02."""
    side = 48
    pixels = torch.rand(N, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = faithfulness.max_sensitivity(lambda x: x.sum(dim=1).numpy(), pixels)
    expected = 0.02 * side / pixels.sum(dim=1).flatten(1).norm(dim=1)
    np.testing.assert_allclose(found, expected, rtol=0.04)
    np.testing.assert_allclose(
        faithfulness.max_sensitivity(lambda x: -9 * x.sum(dim=1).numpy(), pixels), found, 1e-5
    )


def test_more_samples_of_noise_find_no_smaller_change_and_the_same_seed_the_same(pixels):
    explain = lambda x: x.sum(dim=1).numpy()  # noqa: E731
    one, again, other = (
        faithfulness.max_sensitivity(explain, pixels[:1], 4, seed) for seed in (0, 0, 1)
    )
    assert one == again and one != other
    assert faithfulness.max_sensitivity(explain, pixels[:1], 40) >= one


# Everything of a network


@pytest.fixture
def explain(small_run):
    return maps.Explainer(small_run(), steps=4)


@pytest.fixture
def explained(small_network, few_cells, explain):
    model = small_network()
    starts = [explain(model, few_cells, "integrated_gradients", kind) for kind in ("white", "mean")]
    return [
        *starts,
        maps.average(starts),
        explain(model, few_cells, "grad_cam"),
        explain(model, few_cells, "guided_grad_cam"),
        explain(model, few_cells, "occlusion", "background"),
    ]


def test_every_method_is_measured_on_the_same_images_against_one_random_order(
    small_network, few_cells, explain, explained
):
    model, few = small_network(), few_cells.first(3)
    curves, measures = faithfulness.measure(explain, model, few, explained, "white", seed=5)
    titles = [*(item.title for item in explained), "random order"]
    network, pixels, start = explain.network(model), few.pixels, few.baseline("white")
    assert list(curves) == ["title", "way", "share", "score"]
    for way, ends in {"deletion": (pixels, start), "insertion": (start, pixels)}.items():
        rows = curves[curves["way"] == way].pivot(index="title", columns="share", values="score")
        assert (
            set(rows.index) == set(titles)
            and rows.columns.tolist() == np.linspace(0, 1, 17).tolist()
        )
        for column, images in ((0, ends[0]), (16, ends[1])):
            np.testing.assert_allclose(rows.iloc[:, column], network(images).mean(), atol=1e-5)
    names = ["id", "group", "title", "deletion", "insertion", "infidelity", "max_sensitivity"]
    assert list(measures) == names and measures["title"].unique().tolist() == titles
    control = np.random.default_rng(5).random((3, 16, 16))
    fall, gain = ((pixels, start), (start, pixels))
    for item in explained:
        rows = measures[measures["title"] == item.title]
        values = item.on(few).maps
        assert rows["id"].tolist() == few.table["id"].tolist()
        slow = faithfulness.curve(network, *fall, control) - faithfulness.curve(
            network, *fall, values
        )
        np.testing.assert_array_equal(rows["deletion"], slow.mean(axis=1))
        slow = faithfulness.curve(network, *gain, values) - faithfulness.curve(
            network, *gain, control
        )
        np.testing.assert_array_equal(rows["insertion"], slow.mean(axis=1))
        slow = faithfulness.infidelity(network, pixels, start, values, seed=5)
        np.testing.assert_array_equal(rows["infidelity"], slow)
    rows = measures[measures["title"] == "random order"]
    assert (rows[["deletion", "insertion"]] == 0).all(axis=None)
    alone = faithfulness.measure(explain, model, few, explained[3:4], "white", seed=5)[1]
    same = measures[measures["title"].isin(alone["title"])].reset_index(drop=True)
    np.testing.assert_allclose(alone.iloc[:, 3:], same.iloc[:, 3:], rtol=1e-6)


def test_sensitivities_are_of_each_image_with_its_own_baseline(
    small_network, few_cells, explain, explained
):
    model, few = small_network(), few_cells.first(3)
    measures = faithfulness.measure(explain, model, few, explained, "white")[1]
    found = {title: rows["max_sensitivity"] for title, rows in measures.groupby("title")}
    network, mean = explain.network(model), few.mean[None]
    white = torch.ones_like(mean)

    def gradients(x: torch.Tensor, start: torch.Tensor) -> np.ndarray:
        return attribution.integrated_gradients(network, x, start.expand_as(x), 4).maps

    ways = {
        "grad cam": lambda x: attribution.grad_cam(network, x),
        "guided grad cam": lambda x: attribution.guided_grad_cam(network, x),
        "integrated gradients, white": lambda x: gradients(x, white),
        "integrated gradients, mean": lambda x: gradients(x, mean),
    }
    for title, way in ways.items():
        images = [few.pixels[k : k + 1] for k in range(3)]
        slow = [
            faithfulness.max_sensitivity(way, image, seed=k)[0] for k, image in enumerate(images)
        ]
        np.testing.assert_allclose(found.pop(title), slow, rtol=1e-5)
        assert min(slow) > 0
    assert len(found) == 3 and all(values.isna().all() for values in found.values())


def test_sensitivity_takes_a_fixed_number_of_steps(
    small_network, few_cells, explain, explained, monkeypatch
):
    steps = []
    slow = attribution.integrated_gradients

    def spied(*arguments):
        steps.append(arguments[3:])
        return slow(*arguments)

    monkeypatch.setattr(attribution, "integrated_gradients", spied)
    bound = maps.Explainer(explain.run, 4, "trapezoid", 1e-9, grid=True)
    faithfulness.measure(bound, small_network(), few_cells.first(1), explained[:1], "white")
    assert set(steps) == {(4, "gausslegendre", np.inf)}


def test_one_image_is_measured(small_network, few_cells, explain, explained):
    one = few_cells.first(1)
    measures = faithfulness.measure(explain, small_network(), one, explained, "background")[1]
    assert len(measures) == 7 and np.isfinite(measures["infidelity"]).all()


def test_an_image_without_a_map_is_named(small_network, few_cells, explain, explained):
    short = [explained[0].on(few_cells.first(3))]
    words = "integrated gradients, white: image i1 is not among those"
    with pytest.raises(attribution.AttributionError, match=words):
        faithfulness.measure(explain, small_network(), few_cells, short, "white")


def test_everything_is_measured_in_full_float32(small_network, few_cells, explain, explained):
    seen, model = [], small_network()
    make = explain.network

    def watched(model):
        network = make(model)
        network.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        return network

    object.__setattr__(explain, "network", watched)
    with torch.autocast("cpu", torch.bfloat16):
        faithfulness.measure(explain, model, few_cells, explained[3:4], "white")
    assert seen and not any(seen)
