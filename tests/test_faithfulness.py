"""Faithfulness: closed forms for linear functions, slow twins, controls that must come out at 0."""

import numpy as np
import pytest
import torch

from cervix_utils.explanation import faithfulness, maps

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


# Everything of a network


@pytest.fixture
def explain(small_run):
    return maps.Explainer(small_run(), steps=4)


@pytest.fixture
def explained(small_network, few_cells, explain):
    model = small_network()
    kinds = ("white", "blurred")
    starts = [explain(model, few_cells, "integrated_gradients", kind) for kind in kinds]
    return [
        *starts,
        explain(model, few_cells, "grad_cam"),
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
    names = ["id", "group", "title", "deletion", "insertion"]
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
    rows = measures[measures["title"] == "random order"]
    assert (rows[["deletion", "insertion"]] == 0).all(axis=None)
    alone = faithfulness.measure(explain, model, few, explained[3:4], "white", seed=5)[1]
    same = measures[measures["title"].isin(alone["title"])].reset_index(drop=True)
    np.testing.assert_allclose(alone.iloc[:, 3:], same.iloc[:, 3:], rtol=1e-6)


def test_one_image_is_measured(small_network, few_cells, explain, explained):
    one = few_cells.first(1)
    measures = faithfulness.measure(explain, small_network(), one, explained, "background")[1]
    assert len(measures) == 5 and np.isfinite(measures["insertion"]).all()


def test_an_image_without_a_map_is_named(small_network, few_cells, explain, explained):
    short = [explained[0].on(few_cells.first(3))]
    with pytest.raises(KeyError, match="i1"):
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
