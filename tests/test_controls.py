"""Controls: maps and networks that know nothing, in closed form where there is one."""

import copy
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from cervix_utils import attribution, config, controls, explanations, integration, recipes, runs
from cervix_utils.datasets import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


def pictures(n: int = 2, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def cells(images: np.ndarray) -> explanations.Cells:
    n = len(images)
    table = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{k}" for k in range(n)], "label": "normal"})
    masks = np.full((n, *images.shape[2:]), 2, dtype=np.uint8)
    return explanations.Cells(table, images, masks, torch.zeros(images.shape[1:]), "cpu")


# Maps that know nothing


def test_a_uniform_map_is_one_everywhere():
    assert (controls.null_maps(pictures())["uniform"] == np.ones((2, 32, 32))).all()


def test_darkness_is_measured_against_white():
    pixels = np.zeros((1, 3, 1, 3), dtype=np.uint8)
    pixels[0, :, 0, 1], pixels[0, 0, 0, 2] = 255, 255
    np.testing.assert_allclose(controls.null_maps(pixels)["darkness"][0, 0], [1, 0, 2 / 3], atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_edges_of_a_step_lie_on_both_sides_of_it_and_nowhere_else(turned):
    step = np.zeros((1, 3, 6, 6), dtype=np.uint8)
    step[..., 3:] = 255
    found = controls.null_maps(step.swapaxes(2, 3) if turned else step)["edges"][0]
    expected = np.tile([0, 0, 4, 4, 0, 0], (6, 1))  # Sobel: 1 + 2 + 1
    np.testing.assert_allclose(found.T if turned else found, expected, rtol=0, atol=1e-6)


def test_null_maps_of_a_picture_do_not_depend_on_its_neighbours():
    images = pictures(3)
    for name, maps in controls.null_maps(images).items():
        alone = [controls.null_maps(image[None])[name][0] for image in images]
        reversed_ = controls.null_maps(images[::-1])[name][::-1]
        np.testing.assert_allclose(maps, alone, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(maps, reversed_, rtol=0, atol=1e-6, err_msg=name)


def test_null_maps_of_a_flat_picture_have_no_edges_and_none_is_negative():
    assert (controls.null_maps(np.full((1, 3, 5, 5), 77, dtype=np.uint8))["edges"] == 0).all()
    assert all((maps >= 0).all() for maps in controls.null_maps(pictures()).values())


def test_null_maps_are_explanations_by_no_network():
    own = cells(pictures())
    found = controls.null(own)
    assert [one.name for one in found] == ["uniform, none", "darkness, none", "edges, none"]
    for one, maps in zip(found, controls.null_maps(own.pictures).values()):
        np.testing.assert_array_equal(one.maps, maps)
        assert one.table is own.table and one.masks is own.masks
        assert np.isnan([one.deltas, one.steps, one.scores, one.start_scores]).all()


# Networks that know nothing


def changed(model: nn.Module, other: nn.Module) -> set[str]:
    """Entries of the state that differ."""
    pairs = zip(model.state_dict().items(), other.state_dict().values())
    return {name for (name, value), twin in pairs if not torch.equal(value, twin)}


def weights_of(model: nn.Module, layers: list[str]) -> set[str]:
    kinds = (nn.Conv2d, nn.Linear)
    return {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, kinds) and n.split(".")[0] in layers}


@pytest.mark.parametrize("layers", [["fc"], ["layer4", "conv1"], LAYERS, []])
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


def test_an_unknown_layer_is_refused_with_those_that_are_known(model):
    with pytest.raises(ValueError, match=r"no layer 'layer5': it has conv1, bn1, .*layer4, avgpool, fc"):
        controls.randomised(model, ["fc", "layer5"])


def test_the_cascade_goes_from_the_top_down_and_keeps_what_it_has_drawn(model):
    assert controls.layers_from_top(model) == LAYERS
    before, steps = model, list(controls.cascade(model, 3))
    assert [name for name, _ in steps] == LAYERS
    for name, network in steps:
        assert changed(before, network) == weights_of(model, [name])
        before = network
    assert changed(model, before) == weights_of(model, LAYERS)


# Likeness of maps


def maps(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 8, 8))


def test_a_map_is_like_itself_and_against_its_negative():
    one = maps()
    for other, signed in ((one, 1), (np.sinh(one), 1), (-one, -1)):  # only the order counts
        found = controls.similarity(one, other)
        np.testing.assert_allclose(found["signed"], signed, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found["absolute"], 1, rtol=0, atol=1e-12)


def test_maps_at_random_are_not_alike():
    noise = np.random.default_rng(1).normal(size=(2, 2, 100, 100))
    assert controls.similarity(*noise).abs().max(axis=None) < 0.05  # five standard errors


def test_likeness_is_the_correlation_of_ranks():
    one, other = np.round(maps(1), 1), np.round(maps(1) + maps(2), 1)  # ties
    tables = [[pd.Series(f(e[k]).ravel()) for e in (one, other)] for f in (np.array, np.abs) for k in range(3)]
    expected = np.reshape([np.corrcoef(a.rank(), b.rank())[0, 1] for a, b in tables], (2, 3)).T
    np.testing.assert_allclose(controls.similarity(one, other), expected, rtol=0, atol=1e-12)


def test_agreement_is_symmetric_and_one_with_itself():
    three = [SimpleNamespace(name=name, maps=maps(k) + maps(9)) for k, name in enumerate("abc")]
    found = controls.agreement(three)
    assert list(found) == list(found.index) == list("abc")
    np.testing.assert_allclose(found, found.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.diag(found), 1, rtol=0, atol=1e-12)
    assert found.loc["a", "b"] == controls.similarity(three[0].maps, three[1].maps)["signed"].mean()


# Down the cascade


def run_of(**recipe) -> runs.Run:
    return runs.Run(Path(), {"mean": [0.5] * 3, "std": [0.25] * 3} | recipe, pd.DataFrame(), pd.DataFrame())


def tiny() -> nn.Module:
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 2, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(2, 5)))  # fmt: skip


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize(("answer", "expected"), [("the picture", 1), ("nothing", 0), ("turned round", -1)])
def test_maps_that_ignore_the_network_stay_alike_and_flat_ones_resemble_nothing(answer, expected):
    def explain(network, cells, method, baseline, name):
        asked.append((method, baseline, name))
        shown = cells.pictures.mean(axis=1)
        sign = -1 if name != "trained" and answer == "turned round" else 1
        return SimpleNamespace(maps=0 * shown if answer == "nothing" else sign * (shown + 1))

    asked = []
    found = controls.down_the_cascade(explain, run_of(), tiny(), cells(pictures()), "white", 20, 0)
    names = ["trained", "random down to fc", "random down to conv1"]
    assert asked == [("integrated_gradients", "white", name) for name in names]
    assert list(zip(found["layer"], found["form"])) == [(x, f) for x in ("fc", "conv1") for f in ("signed", "absolute")]
    for form, worth in (("signed", expected), ("absolute", abs(expected))):
        rows = found.loc[found["form"] == form, ["value", "low", "high"]]
        np.testing.assert_allclose(rows, worth, rtol=0, atol=1e-12)


def test_the_cascade_of_a_network_compares_its_maps_and_makes_each_once(tmp_path, model):
    own, run = cells(pictures()), run_of()
    explain = explanations.Explainer(tmp_path, "key", steps=4)
    found = controls.down_the_cascade(explain, run, model, own, "white", 20, 0)
    assert list(found["layer"]) == [layer for layer in LAYERS for _ in range(2)]
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    assert found["value"].between(-1, 1).all()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) == 7
    start = torch.ones_like(own.pixels)
    both = [
        integration.integrated_gradients(
            attribution.Severity(attribution.FromPixels(network, [0.5] * 3, [0.25] * 3)), own.pixels, start, 4
        ).maps
        for network in (model, controls.randomised(model, LAYERS[:2], 0))
    ]
    slow = controls.similarity(*both).mean()
    at = found.set_index(["layer", "form"])["value"]["layer4"]
    np.testing.assert_allclose(at[["signed", "absolute"]], slow[["signed", "absolute"]], rtol=0, atol=1e-5)
    again = controls.down_the_cascade(explain, run, model, own, "white", 20, 0)
    pd.testing.assert_frame_equal(again, found)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == kept


# Permuted labels


def settings(**changes) -> dict:
    return config.validate({}, "defaults") | {"weights_resnet50": "none", "weights_resnet101": "none"} | changes


def trained(initialisation: str) -> runs.Run:
    """A run of the shipped recipe, never trained: 30 images of 15 groups, a third in each part."""
    recipe = asdict(replace(recipes.herlev(settings(), "combined"), weights="imagenet"))
    names = CLASSES["herlev"]
    table = pd.DataFrame({"id": [f"i{k}" for k in range(30)], "group": [f"g{k % 15}" for k in range(30)]})
    table["part"], table["label"] = np.repeat(["train", "valid", "test"], 10), [names[k % 5] for k in range(30)]
    return runs.Run(Path(), recipe | {"initialisation": initialisation}, pd.DataFrame(), table)


def data_of(run: runs.Run) -> pd.DataFrame:
    table = run.predictions.drop(columns="part").assign(path="p", group="of the data", severity=1)
    return table.sample(frac=1, random_state=0)


@pytest.mark.parametrize("given", [{}, {"weights_resnet101": "grown"}, {"weights_resnet101": "imagenet"}])
def test_other_initial_weights_are_refused_before_anything_is_trained(monkeypatch, tmp_path, given):
    monkeypatch.setattr(runs, "obtain", lambda *_: pytest.fail("trained"))
    run = trained("resnet101, state dict mine.pth (sha256 0123456789ab)")
    words = (
        r"combined paper-0 started from resnet101, state dict mine\.pth .*, not from resnet101.*give weights_resnet50"
    )
    with pytest.raises(attribution.AttributionError, match=words):
        controls.permuted(run, data_of(run), settings(**given), tmp_path, "cpu", "float32")


@pytest.mark.parametrize(
    ("given", "initialisation"),
    [
        ("none", "resnet101, random initialisation (no pretraining)"),
        ("grown", "resnet101 grown from: resnet50, random initialisation (no pretraining)"),
    ],
)
def test_the_same_recipe_is_trained_on_permuted_labels(monkeypatch, tmp_path, given, initialisation):
    asked = []
    monkeypatch.setattr(runs, "obtain", lambda *args: asked.append(args) or "trained")
    run = trained(initialisation)
    here = settings(weights_resnet101=given, seed=5)
    assert controls.permuted(run, data_of(run), here, tmp_path, "cpu", "float32") == "trained"
    ((split, recipe, *rest),) = asked
    assert rest == [tmp_path, "cpu", "float32"]
    own = {name: value for name, value in run.recipe.items() if name != "initialisation"}
    weights = "none" if given == "none" else "grown:none"
    assert asdict(recipe) == own | {"weights": weights, "pipeline": "combined_permuted", "seed": 5}
    pd.testing.assert_frame_equal(split[["id", "group", "part"]], run.predictions[["id", "group", "part"]])
    for part, rows in split.groupby("part"):
        before = run.predictions.loc[rows.index, "label"]
        assert sorted(rows["label"]) == sorted(before)
        assert (rows["label"] == before).all() == (part == "test")


def test_images_that_are_missing_from_the_data_are_named(tmp_path):
    run = trained("resnet101, random initialisation (no pretraining)")
    cells = data_of(run)
    with pytest.raises(
        attribution.AttributionError, match=f"1 images of .* the first is {cells['id'].iloc[0]}: give the data"
    ):
        controls.permuted(run, cells.iloc[1:], settings(), tmp_path, "cpu", "float32")
