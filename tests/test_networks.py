"""Initial weights and architectures: nothing unsafe is loaded, nothing wrong taken in silence."""

import json
import os
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cervix_utils.training import networks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def resnet50() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-50 whose every branch does something, running statistics included."""
    torch.manual_seed(0)
    state = networks.network("resnet50", "linear", 5).state_dict()
    for key, value in state.items():
        if "running_var" in key or ("bn" in key and "weight" in key):
            value.uniform_(0.6, 1.1)
        elif "running_mean" in key or ("bn" in key and "bias" in key):
            value.uniform_(-0.1, 0.1)
    return state


# Growing and folding


def test_a_grown_resnet101_computes_the_same_function_until_it_is_trained(resnet50):
    small = networks.network("resnet50", "linear", 5, resnet50).eval()
    grown = networks.network("resnet101", "linear", 5, networks.grow_resnet101(resnet50)).eval()
    grown.fc.load_state_dict(small.fc.state_dict())
    x = torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        assert small(x).std() > 1e-3
        torch.testing.assert_close(grown(x), small(x), rtol=0, atol=1e-5)
        grown.layer3[20].bn3.weight += 0.5
        assert not torch.allclose(grown(x), small(x), rtol=0, atol=1e-4)


def test_copies_in_a_grown_network_are_its_own(resnet50):
    grown = networks.grow_resnet101(resnet50)
    pointers = [value.data_ptr() for key, value in grown.items() if key.endswith("conv1.weight")]
    assert len(pointers) == len(set(pointers)) == 1 + 33


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("resnet50", "linear"), ("resnet18", "paper"), ("mobilenet_v3_small", "linear")],
)
def test_a_network_with_folded_norms_computes_the_same_function(resnet50, architecture, head):
    state = resnet50 if architecture == "resnet50" else None
    model = networks.network(architecture, head, 5, state).train()
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model(x)  # running statistics of its own
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = networks.fold_batch_norms(model)
    with torch.inference_mode():
        wanted = model.eval()(x)
        np.testing.assert_allclose(folded(x), wanted, rtol=0, atol=1e-4 * wanted.abs().max())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert (norms == 0) == architecture.startswith("resnet") and folded is not model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Files of weights


class Evil:
    """Unpickled, it makes a folder: proof that code ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "bare pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path, zipped):
    file, proof = tmp_path / "weights.pth", tmp_path / "ran"
    bad = {"conv1.weight": Evil(proof)}
    torch.save(bad, file) if zipped else file.write_bytes(pickle.dumps(bad))
    with pytest.raises(
        networks.WeightsError, match=r"weights\.pth.*was not loaded.*save model.state_dict"
    ):
        networks.read_weights(file)
    assert not proof.exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert proof.exists()  # the trap works


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "state_dict": {"a": torch.zeros(1)}}, "no plain state dict"),
        ([torch.zeros(1)], "no plain state dict"),
        ({0: torch.zeros(1)}, "no plain state dict"),
        (b"<html>404</html>", "no plain state dict"),
        (b"", "no plain state dict"),
    ],
    ids=["checkpoint", "list", "numbers", "html", "empty"],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content, words, name):
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(networks.WeightsError, match=words) as error:
        networks.read_weights(file)
    assert str(file) in str(error.value)


def test_a_missing_file_is_named_with_the_alternatives(tmp_path):
    for call in (networks.read_weights, lambda file: networks.initial_state(str(file), "resnet18")):
        with pytest.raises(networks.WeightsError, match=r"no file .*no\.pth.*'imagenet' or 'none'"):
            call(tmp_path / "no.pth")
    with pytest.raises(networks.WeightsError, match=r"no file .*no\.pth"):
        networks.describe_weights(str(tmp_path / "no.pth"), "resnet18")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_is_read_as_float32(tmp_path, suffix):
    state = {"w": torch.tensor([1.5, -2.0]).half(), "n": torch.tensor([7])}
    file = tmp_path / f"w{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    found = networks.read_weights(file)
    assert found["w"].dtype == torch.float32 and found["w"].tolist() == [1.5, -2]
    assert found["n"].item() == 7


SPOIL = {
    "missing": lambda s: {key: s[key] for key in s if key != "layer1.0.conv1.weight"},
    "unexpected": lambda s: s | {"layer9.weight": torch.zeros(1)},
    "shape": lambda s: s | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
    "prefix": lambda s: {f"module.{key}": value for key, value in s.items()},
    "empty": lambda s: {},
}


@pytest.mark.parametrize("name", SPOIL)
def test_weights_of_another_network_are_refused_by_name(name):
    good = networks.network("resnet18", "linear", 5).state_dict()
    networks.network("resnet18", "paper", 3, good)
    words = r"not of a resnet18 .*(Missing|Unexpected|mismatch).*give weights of a resnet18"
    with pytest.raises(networks.WeightsError, match=words):
        networks.network("resnet18", "linear", 5, SPOIL[name](good))


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small"])
def test_weights_fill_all_but_the_head(architecture):
    whole = models.get_model(architecture).state_dict()  # with torchvision's own head of 1000
    state = {key: torch.full_like(value, 3) for key, value in whole.items()}
    model = networks.network(architecture, "linear", 5, state)
    head = f"{model.head_name}."
    for key, value in model.state_dict().items():
        assert (value == 3).all() != key.startswith(head), key
    assert model.state_dict()[f"{head}0.weight"].shape[0] == 5


def test_grown_needs_an_origin_and_none_is_none():
    assert networks.initial_state("none", "resnet50") is None
    with pytest.raises(networks.WeightsError, match="weights_resnet50"):
        networks.initial_state("grown:none", "resnet101")


def test_grown_from_a_file(resnet50, tmp_path):
    save_file(resnet50, tmp_path / "w.safetensors")
    state = networks.initial_state(f"grown:{tmp_path / 'w.safetensors'}", "resnet101")
    assert torch.equal(state["layer3.22.conv1.weight"], resnet50["layer3.5.conv1.weight"])
    networks.network("resnet101", "linear", 5, state)


@pytest.mark.parametrize("error", [OSError("no route to host"), URLError("no route to host")])
def test_without_a_connection_the_message_says_what_to_fetch_and_where_to_put_it(
    monkeypatch, error
):
    def offline(self, **options):
        raise error

    weights = models.get_model_weights("resnet50")
    monkeypatch.setattr(weights, "get_state_dict", offline)
    words = r"no route to host.*https://.*resnet50.*checkpoints.*weights_resnet50="
    with pytest.raises(networks.WeightsError, match=words):
        networks.initial_state("imagenet", "resnet50")


def test_descriptions_name_the_file_by_digest_and_not_its_place(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    plain = networks.describe_weights("none", "resnet50")
    assert plain == "resnet50, random initialisation (no pretraining)"
    found = networks.describe_weights(f"grown:{tmp_path / 'w.pth'}", "resnet101")
    assert found == "resnet101 grown from: resnet50, state dict w.pth (sha256 2d711642b726)"
    assert "IMAGENET1K_V1" in networks.describe_weights("imagenet", "resnet18")


# Architectures and heads


def test_head_of_paper_c():
    model = networks.network("resnet50", "paper", 3)
    assert [type(layer) for layer in model.fc] == [nn.Linear, nn.ReLU, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in model.fc[::2]]
    assert sizes == [(2048, 100), (100, 3)]


@pytest.mark.parametrize("n", [1, 4, 5])
def test_a_linear_head_and_a_score_that_starts_in_the_middle_of_the_scale(n):
    model = networks.network("resnet18", "linear", n)
    assert [type(layer) for layer in model.fc] == [nn.Linear] and model.fc[0].out_features == n
    assert (model.fc[0].bias == 3).all() == (n == 1)


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_tiny", "mobilenet_v3_small"])
@pytest.mark.parametrize("head", ["paper", "linear"])
def test_parameter_groups_cover_every_parameter_once(architecture, head):
    model = networks.network(architecture, head, 3)
    groups = networks.body_and_head(model)
    ids = [id(parameter) for group in groups for parameter in group]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    last = model.get_submodule(model.head_name)
    assert {id(p) for p in groups[1]} == {id(p) for p in last.parameters()}


FAMILIES = {
    "alexnet": 63, "vgg11": 32, "resnet18": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32,
    "densenet121": 32, "mobilenet_v2": 32, "mnasnet0_5": 32, "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32, "regnet_y_400mf": 32, "convnext_tiny": 32, "vit_b_32": 224,
    "swin_t": 32, "maxvit_t": 224,
}  # fmt: skip


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_of_torchvision_gets_its_head(architecture):
    place = "cpu" if architecture.startswith("regnet") else "meta"  # meta: no arithmetic
    with torch.device(place), torch.inference_mode():
        model = networks.network(architecture, "paper", 3).eval()
        side = FAMILIES[architecture]
        assert model(torch.empty(2, 3, side, side)).shape == (2, 3)


@pytest.mark.parametrize("architecture", ["squeezenet1_0", "googlenet", "inception_v3"])
def test_networks_that_end_otherwise_are_refused(architecture):
    with pytest.raises(networks.WeightsError, match=f"{architecture} does not end in one linear"):
        networks.network(architecture, "linear", 3)


@pytest.mark.parametrize("name", ["resnet_18", "fcn_resnet50", "raft_large", ""])
def test_other_networks_are_refused(name):
    with pytest.raises(networks.WeightsError, match="torchvision has no network"):
        networks.network(name, "linear", 3)


def test_weights_of_a_run_folder_say_what_was_trained_there(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    first = {"task": "sipakmed", "pipeline": "classification", "protocol": "grouped", "fold": 0}
    record = json.dumps(first | {"weights": "resnet18, random"})
    (tmp_path / "recipe.json").write_text(record)
    words = networks.describe_weights(str(tmp_path / "model.safetensors"), "resnet18")
    assert words.startswith("resnet18 trained on sipakmed, classification, grouped-0 (sha256 ")
    assert words.endswith("from: resnet18, random") and str(tmp_path) not in words


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    torch.save({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, tmp_path / "w.pth")
    with pytest.raises(networks.WeightsError, match="b is not finite"):
        networks.read_weights(tmp_path / "w.pth")
