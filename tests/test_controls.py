"""Controls: maps, networks and images with nothing to explain, in closed form if there is one."""

import copy
from collections import OrderedDict
from dataclasses import asdict, replace
from types import SimpleNamespace

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from cervix_utils import paths
from cervix_utils.data import datasets
from cervix_utils.evaluation import metrics
from cervix_utils.explanation import attribution, controls, maps
from cervix_utils.training import fitting, recipes, runs

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = list(datasets.get("herlev").classes)
LAYERS = ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


def drawn(pictures: np.ndarray) -> maps.Images:
    n = len(pictures)
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{k}" for k in range(n)]})
    table = table.assign(label="normal", original="normal_columnar", severity=1, predicted="normal")
    masks = np.full((n, *pictures.shape[2:]), 2, dtype=np.uint8)
    return maps.Images(table, pictures, masks, "cpu")


def chosen(n: int = 2, side: int = 32) -> maps.Images:
    rng = np.random.default_rng(0)
    return drawn(rng.integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def null_maps(pictures: np.ndarray) -> dict[str, np.ndarray]:
    items = controls.null(drawn(pictures))
    return {item.table["network"].iloc[0]: item.maps for item in items}


# Maps that know nothing


def test_a_uniform_map_is_one_everywhere():
    assert (null_maps(chosen().pictures)["uniform"] == np.ones((2, 32, 32))).all()


def test_darkness_is_measured_against_white():
    pixels = np.zeros((1, 3, 1, 3), dtype=np.uint8)
    pixels[0, :, 0, 1], pixels[0, 0, 0, 2] = 255, 255
    np.testing.assert_allclose(null_maps(pixels)["darkness"][0, 0], [1, 0, 2 / 3], atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_edges_of_a_step_lie_on_both_sides_of_it_and_nowhere_else(turned):
    step = np.zeros((1, 3, 6, 6), dtype=np.uint8)
    step[..., 3:] = 255
    found = null_maps(step.swapaxes(2, 3) if turned else step)["edges"][0]
    expected = np.tile([0, 0, 4, 4, 0, 0], (6, 1))  # Sobel: 1 + 2 + 1
    np.testing.assert_allclose(found.T if turned else found, expected, rtol=0, atol=1e-6)


def test_null_maps_of_a_picture_do_not_depend_on_its_neighbours():
    images = chosen(3).pictures
    for name, values in null_maps(images).items():
        alone = [null_maps(image[None])[name][0] for image in images]
        reversed_ = null_maps(images[::-1])[name][::-1]
        np.testing.assert_allclose(values, alone, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(values, reversed_, rtol=0, atol=1e-6, err_msg=name)


def test_null_maps_of_a_flat_picture_have_no_edges_and_none_is_negative():
    assert (null_maps(np.full((1, 3, 5, 5), 77, dtype=np.uint8))["edges"] == 0).all()
    assert all((values >= 0).all() for values in null_maps(chosen().pictures).values())


def test_null_maps_are_explanations_by_no_network():
    images = chosen()
    items = controls.null(images)
    assert [item.title for item in items] == [
        f"null map, {name}" for name in ("uniform", "darkness", "edges")
    ]
    for item in items:
        pd.testing.assert_frame_equal(item.table[maps.ABOUT], images.table[maps.ABOUT])
        assert item.masks is images.masks and item.table[maps.NUMBERS].isna().all(axis=None)


# Networks that know nothing


def changed(model: nn.Module, other: nn.Module) -> set[str]:
    """Entries of the state that differ."""
    pairs = zip(model.state_dict().items(), other.state_dict().values())
    return {name for (name, value), twin in pairs if not torch.equal(value, twin)}


def weights_of(model: nn.Module, layers: list[str]) -> set[str]:
    kinds = (nn.Conv2d, nn.Linear)
    return {
        f"{n}.weight"
        for n, m in model.named_modules()
        if isinstance(m, kinds) and n.split(".")[0] in layers
    }


@pytest.mark.parametrize("layers", [["fc"], ["layer4", "conv1"], LAYERS])
def test_weights_of_the_named_layers_are_drawn_anew_and_nothing_else(model, layers):
    before = copy.deepcopy(model)
    found = controls.randomised(model, layers)
    assert changed(model, found) == weights_of(model, layers)
    assert not changed(model, before)


def test_fresh_weights_keep_mean_and_spread_and_forget_the_rest(model):
    found = controls.randomised(model, ["layer4"])
    for name in weights_of(model, ["layer4"]):
        old, new = model.state_dict()[name], found.state_dict()[name]
        assert new.std() == pytest.approx(old.std().item(), rel=0.01)
        assert new.mean() == pytest.approx(old.mean().item(), abs=0.02 * old.std().item())
        assert abs(np.corrcoef(old.flatten(), new.flatten())[0, 1]) < 0.02


def test_one_seed_gives_one_network_and_another_seed_another(model):
    one, same, other = (controls.randomised(model, ["fc", "layer1"], seed) for seed in (1, 1, 2))
    assert not changed(one, same)
    assert changed(one, other) == weights_of(model, ["fc", "layer1"])


def test_all_layers_are_drawn_anew_where_none_is_named(model):
    assert not changed(controls.randomised(model), controls.randomised(model, LAYERS))


def test_a_layer_more_changes_that_layer_alone_and_keeps_what_was_drawn(model):
    assert controls.layers_from_top(model) == LAYERS
    before = model
    for depth, name in enumerate(LAYERS, 1):
        network = controls.randomised(model, LAYERS[:depth], 3)
        assert changed(before, network) == weights_of(model, [name])
        before = network
    assert changed(model, before) == weights_of(model, LAYERS)


# Likeness of maps


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 8, 8))


def test_a_map_is_like_itself_and_against_its_negative():
    values = noise()
    for other, signed in ((values, 1), (np.sinh(values), 1), (-values, -1)):  # the order counts
        alike = controls.similarity(values, other)
        np.testing.assert_allclose(alike["signed"], signed, rtol=0, atol=1e-12)
        np.testing.assert_allclose(alike["absolute"], 1, rtol=0, atol=1e-12)


def test_maps_at_random_are_not_alike():
    both = np.random.default_rng(1).normal(size=(2, 2, 100, 100))
    assert controls.similarity(*both).abs().max(axis=None) < 0.05  # five standard errors


def test_likeness_is_the_correlation_of_ranks():
    a, b = np.round(noise(1), 1), np.round(noise(1) + noise(2), 1)  # ties
    slow = {
        form: [naive.spearman(change(x).ravel(), change(y).ravel()) for x, y in zip(a, b)]
        for form, change in (("signed", np.asarray), ("absolute", np.abs))
    }
    pd.testing.assert_frame_equal(controls.similarity(a, b), pd.DataFrame(slow), rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_a_constant_map_is_like_nothing_and_nothing_is_said_of_it():
    assert controls.similarity(np.ones((3, 8, 8)), noise()).isna().all(axis=None)


# Down the cascade


def tiny() -> nn.Module:
    parts = {"conv1": nn.Conv2d(3, 2, 3), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, fc=nn.Linear(2, 5)))


@pytest.mark.parametrize(
    ("answer", "expected"), [("the picture", 1), ("nothing", 0), ("turned round", -1)]
)
def test_maps_that_ignore_the_network_stay_alike_and_flat_ones_resemble_nothing(answer, expected):
    def explain(model, images, method, baseline, network="trained"):
        asked.append((method, baseline, network))
        shown = images.pictures.mean(axis=1)
        sign = -1 if network != "trained" and answer == "turned round" else 1
        return SimpleNamespace(maps=0 * shown if answer == "nothing" else sign * (shown + 1))

    asked = []
    table = controls.down_the_cascade(explain, tiny(), chosen(), "white", 20, 0)
    names = ["trained", "random down to fc", "random down to conv1"]
    assert asked == [("integrated_gradients", "white", name) for name in names]
    forms = [("fc", "signed"), ("fc", "absolute"), ("conv1", "signed"), ("conv1", "absolute")]
    assert list(zip(table["layer"], table["form"])) == forms
    for form, worth in (("signed", expected), ("absolute", abs(expected))):
        rows = table.loc[table["form"] == form, ["value", "low", "high"]]
        np.testing.assert_allclose(rows, worth, rtol=0, atol=1e-12)


def test_the_cascade_of_a_network_compares_its_maps_and_makes_each_once(
    small_run, small_network, tmp_path, monkeypatch
):
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path))
    explain, images, model = maps.Explainer(small_run(), steps=4), chosen(), small_network()
    layers = ["fc", "layer4", "conv1"]
    table = controls.down_the_cascade(explain, model, images, "white", 20, 0)
    assert list(table["layer"]) == [layer for layer in layers for _ in range(2)]
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert table["value"].between(-1, 1).all()
    assert len(list(paths.cache_dir().glob("maps-*/maps.npz"))) == 4
    start = torch.ones_like(images.pixels)
    both = [
        attribution.integrated_gradients(explain.network(network), images.pixels, start, 4).maps
        for network in (model, controls.randomised(model, layers[:2], 0))
    ]
    slow = controls.similarity(*both).mean()
    row = table.set_index(["layer", "form"])["value"]["layer4"]
    np.testing.assert_allclose(row[["signed", "absolute"]], slow, rtol=0, atol=1e-5)
    monkeypatch.setattr(maps.Explainer, "make", lambda *_: pytest.fail("made again"))
    again = controls.down_the_cascade(explain, model, images, "white", 20, 0)
    pd.testing.assert_frame_equal(again, table)


# Permuted labels


@pytest.fixture
def trained(small_run):
    """Function: a run that was never trained: 30 images of 15 groups, a third in each part."""

    def make(weights: str) -> runs.Run:
        table = pd.DataFrame({"id": [f"i{k}" for k in range(30)]})
        table["group"] = [f"g{k % 15}" for k in range(30)]
        table["part"] = np.repeat(["train", "valid", "test"], 10)
        table["label"] = [NAMES[k % 5] for k in range(30)]
        run = small_run(table, fold=2)
        return replace(run, recipe=run.recipe | {"weights": weights})

    return make


def data_of(run: runs.Run) -> pd.DataFrame:
    table = run.predictions.drop(columns="part").assign(path="p", group="of the data", severity=1)
    return table.sample(frac=1, random_state=0)


@pytest.mark.parametrize("weights", ["none", "grown:none", "imagenet"])
def test_other_initial_weights_are_refused_before_anything_is_trained(
    monkeypatch, tmp_path, trained, weights
):
    monkeypatch.setattr(runs, "obtain", lambda *_: pytest.fail("trained"))
    run = trained("resnet101, state dict mine.pth (sha256 0123456789ab)")
    words = (
        r"paper-2 started from resnet101, state dict mine\.pth .*, not from resnet101.*give its w"
    )
    with pytest.raises(attribution.AttributionError, match=words):
        controls.permuted(run, data_of(run), weights, tmp_path, 0)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("none", "resnet101, random initialisation (no pretraining)"),
        ("grown:none", "resnet101 grown from: resnet50, random initialisation (no pretraining)"),
    ],
)
def test_the_same_recipe_is_trained_on_permuted_labels(
    monkeypatch, tmp_path, trained, weights, words
):
    asked = []
    monkeypatch.setattr(runs, "obtain", lambda *arguments: asked.append(arguments) or "trained")
    run = trained(words)
    assert controls.permuted(run, data_of(run), weights, tmp_path, 5, "cuda") == "trained"
    ((split, recipe, *rest),) = asked
    assert rest == [tmp_path, "cuda"]
    changes = {"weights": weights, "pipeline": "combined_permuted", "seed": 5}
    assert asdict(recipe) == run.recipe | changes
    assert recipes.pipeline_of(recipe.pipeline) is recipes.pipeline_of("combined")
    expected = run.predictions[["id", "group", "part"]]
    pd.testing.assert_frame_equal(split[["id", "group", "part"]], expected)
    constant = split[["task", "protocol", "fold"]].drop_duplicates().to_numpy().tolist()
    assert constant == [["herlev", "paper", 2]]
    for part, rows in split.groupby("part"):
        before = run.predictions.loc[rows.index, "label"]
        assert sorted(rows["label"]) == sorted(before)
        assert (rows["label"] == before).all() == (part == "test")


def test_images_that_are_missing_from_the_data_are_named(tmp_path, trained):
    run = trained("resnet101, random initialisation (no pretraining)")
    table = data_of(run)
    words = f"{table['id'].iloc[0]} is not in this data: give what it saw"
    with pytest.raises(attribution.AttributionError, match=words):
        controls.permuted(run, table.iloc[1:], "none", tmp_path, 0)


# Blanked images


def random_images(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (4, 3, 9, 7), dtype=np.uint8)
    return pictures, rng.integers(0, 5, (4, 9, 7), dtype=np.uint8)


@pytest.mark.parametrize("region", controls.REGIONS)
def test_blanking_equals_a_loop_over_pixels(region):
    pictures, masks = random_images()
    slow = [naive.blank(*pair, region, controls.GREY) for pair in zip(pictures, masks)]
    np.testing.assert_array_equal(controls.blank(pictures, masks, region), slow)


@pytest.mark.parametrize("region", controls.REGIONS)
def test_everything_outside_the_region_stays_and_the_input_too(region):
    pictures, masks = random_images()
    before, blanked = pictures.copy(), controls.blank(pictures, masks, region)
    outside = np.repeat(~controls.REGIONS[region](masks)[:, None], 3, axis=1)
    np.testing.assert_array_equal(blanked[outside], pictures[outside])
    np.testing.assert_array_equal(pictures, before)
    assert blanked.dtype == np.uint8 and (blanked != pictures).any()


def test_cell_and_background_make_up_the_image_and_the_nucleus_is_in_the_cell():
    masks = np.arange(6)
    cell, ground, nucleus = (
        controls.REGIONS[name](masks) for name in ("cell", "background", "nucleus")
    )
    assert (cell ^ ground).all() and not (nucleus & ~cell).any()
    assert nucleus.tolist() == [0, 0, 1, 0, 0, 0]


def test_a_blanked_cell_leaves_a_flat_image_where_the_background_is_flat():
    masks = random_images()[1]
    pictures = np.where(masks[:, None] == 4, 200, random_images(1)[0]).astype(np.uint8)
    assert (controls.blank(pictures, masks, "cell") == 200).all()


def test_an_image_without_background_or_without_nucleus_is_no_accident():
    pictures, masks = random_images()
    grey = np.array(controls.GREY)[:, None, None]
    assert (controls.blank(pictures, np.full_like(masks, 4), "background") == grey).all()
    assert (controls.blank(pictures, np.full_like(masks, 3), "cell") == grey).all()
    for region in ("nucleus", "background"):
        blanked = controls.blank(pictures, np.full_like(masks, 3), region)
        np.testing.assert_array_equal(blanked, pictures)


class Looks(nn.Module):
    """Severity, 0..1: mean grey of the ``middle`` (the nucleus of ``split``) or of the rest."""

    def __init__(self, middle: bool):
        super().__init__()
        inside = torch.zeros(32, 32)
        inside[12:20, 12:20] = 1
        self.where = nn.Parameter(inside if middle else 1 - inside, requires_grad=False)

    def forward(self, x):
        return ((x * self.where).sum(dim=(1, 2, 3)) / (3 * self.where.sum()))[:, None]


@pytest.fixture
def looking(small_run, monkeypatch):
    """Function: a run of the regression pipeline whose network is a ``Looks``; pixels stay 0..1."""

    def make(middle: bool, **changes) -> runs.Run:
        monkeypatch.setattr(runs, "load_model", lambda run, device: Looks(middle).to(device))
        plain = {"image_size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        return small_run(**{"pipeline": "regression"} | plain | changes)

    return make


@pytest.fixture
def split(tmp_path, write_mask) -> pd.DataFrame:
    """10 cells of 32 x 32 on one background: nucleus (8 x 8) and cytoplasm of a shade each."""
    rows, indices = [], np.full((32, 32), 4)
    indices[8:24, 8:24], indices[12:20, 12:20] = 3, 2
    for k in range(10):
        shades = np.array([0, 0, 20 * k, 250 - 20 * k, 180], dtype=np.uint8)
        Image.fromarray(shades[indices]).convert("RGB").save(path := tmp_path / f"{k}.BMP")
        mask = write_mask(tmp_path / f"{k}-d.bmp", indices=indices)
        row = {"id": f"i{k}", "group": f"g{k}", "part": "train" if k < 4 else "test"}
        row |= {"severity": k % 5 + 1, "label": NAMES[k % 5], "path": str(path), "mask": str(mask)}
        rows.append(row | {"sha256": f"{tmp_path} {k}"})
    return pd.DataFrame(rows)


def blanked_scores(run: runs.Run, split: pd.DataFrame) -> dict[str, np.ndarray]:
    parts = controls.predict_blanked(run, split).groupby("pipeline", sort=False)["score"]
    return {name.removeprefix("regression_without_"): part.to_numpy() for name, part in parts}


def test_a_network_falls_to_a_constant_when_all_it_looks_at_is_blanked(split, looking):
    scores = blanked_scores(looking(middle=True), split)
    assert list(scores) == ["nucleus", "cell", "background"]
    np.testing.assert_allclose(scores["background"], 20 * np.arange(4, 10) / 255, atol=1e-6)
    np.testing.assert_allclose(scores["nucleus"], 180 / 255, atol=1e-6)
    np.testing.assert_allclose(scores["cell"], 180 / 255, atol=1e-6)


def test_a_network_that_looks_elsewhere_does_not_notice(split, looking):
    run = looking(middle=False)
    predictions = fitting.predict(Looks(False), split, runs.recipe_of(run))
    plain = predictions.loc[predictions["part"] == "test", "score"]
    scores = blanked_scores(run, split)
    np.testing.assert_allclose(scores["nucleus"], plain, atol=1e-6)
    assert np.ptp(plain) > 0.05 and np.ptp(scores["cell"]) < 1e-6


def test_a_window_and_an_image_without_background_are_minded(split, looking):
    zoomed = looking(middle=True, window=16)  # nothing but the cell is in view
    scores = blanked_scores(zoomed, split)
    assert scores["cell"] == pytest.approx(np.mean(controls.GREY) / 255, abs=1e-6)


@pytest.mark.parametrize("pipeline", ["combined", "regression"])
def test_blanked_predictions_are_a_tidy_frame_of_the_test_images_with_a_mask(
    split, looking, monkeypatch, pipeline
):
    split.loc[[0, 5, 7], "mask"] = ""
    run = looking(middle=True, pipeline=pipeline, fold=3)
    if pipeline == "combined":
        network = nn.Sequential(Looks(True), nn.Linear(1, 5))
        monkeypatch.setattr(runs, "load_model", lambda *_: network)
    table = controls.predict_blanked(run, split)
    metrics.check_predictions(table)
    keys = ["task", "pipeline", "protocol", "fold", "run", "id", "group", "part", "label"]
    assert list(table) == [*keys, *(f"p_{name}" for name in NAMES), "score"]
    about = table[["task", "protocol", "fold", "run", "part"]].drop_duplicates()
    assert about.to_numpy().tolist() == [["herlev", "paper", 3, "", "test"]]
    for region in controls.REGIONS:
        rows = table[table["pipeline"] == f"{pipeline}_without_{region}"]
        assert rows["id"].tolist() == ["i4", "i6", "i8", "i9"]
        assert rows["label"].tolist() == [NAMES[k] for k in (4, 1, 3, 4)]
    with pytest.raises(ValueError, match=r"no test image has a mask.*use a copy of the data with"):
        controls.predict_blanked(run, split.assign(mask=""))
