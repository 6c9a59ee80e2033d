"""The callbacks for a GPU, on the CPU: a stand-in for a CUDA graph computes at each replay."""

import numpy as np
import pytest
import torch
import toys
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip

from cervix_utils.training import fitting, gpu, learners

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorded:
    """What ``gpu.record`` gives: its replay computes anew and fills the same tensors."""

    replays = 0

    def __init__(self, model, compute, update):
        self.model, self.compute, self.update = model, compute, update
        before = {name: value.clone() for name, value in model.state_dict().items()}
        random = torch.get_rng_state()
        self.batch, *self.values = compute()
        torch.set_rng_state(random)
        model.load_state_dict(before)
        model.zero_grad()

    def replay(self):
        Recorded.replays += 1
        self.model.zero_grad()
        batch, *values = self.compute()
        self.update()
        for kept, fresh in zip([*self.batch, *self.values], [*batch, *values]):
            kept.copy_(fresh)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    def record(*parts):
        made = Recorded(*parts)
        return made, (made.batch, *made.values)

    Recorded.replays = 0
    monkeypatch.setattr(gpu, "record", record)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**10, 10**10))


def trained(data_root, pipeline, *callbacks, **changes):
    """A Learner after its recipe's fit, with some callbacks more."""
    recipe = toys.recipe_of(pipeline, precision="float32", epochs=2, **changes)
    learn = learners.build(toys.split_of(data_root, recipe), recipe, "cpu")
    learn.add_cbs(callbacks)
    fitting.fit(learn, recipe)
    return learn


def losses_of(learn) -> np.ndarray:
    return np.array([float(loss) for loss in learn.recorder.losses])


@pytest.mark.parametrize(
    ("pipeline", "changes"),
    [
        ("combined", {}),
        ("combined", {"rotate": 0.0, "lighting": 0.0}),
        ("regression", {}),
        ("sgd", {"batch_size": 3}),
        ("modern", {"batch_size": 3}),
    ],
)
def test_replayed_steps_train_as_plain_ones_do(tiny_demo, pipeline, changes):
    plain = trained(tiny_demo, pipeline, gpu.PicturesOnGpu(), **changes)
    replayed = trained(tiny_demo, pipeline, gpu.PicturesOnGpu(), gpu.GraphedStep(), **changes)
    assert Recorded.replays == 2 * len(plain.dls.train) - 1  # all but the first
    assert np.allclose(losses_of(plain), losses_of(replayed), atol=1e-4)
    assert plain.recorder.lrs == replayed.recorder.lrs
    for a, b in zip(plain.model.state_dict().values(), replayed.model.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-3)
    assert all(p.grad is None for p in replayed.model.parameters())


def test_batches_cut_on_the_gpu_are_those_of_the_loader(tiny_demo):
    recipe = toys.recipe_of("combined", **toys.STILL)
    loader = learners.build(toys.split_of(tiny_demo, recipe), recipe, "cpu").dls.train
    seen = []
    for batches in (loader, gpu.Resident(loader, torch.device("cpu"))):
        loader.rng.seed(5)
        seen.append(list(batches))
    assert len(seen[0]) == len(seen[1]) > 1
    for (a, x), (b, y) in zip(*seen):
        assert torch.equal(a, b) and torch.equal(x, y) and type(a) is type(b)


class Watch(Callback):
    """Acts within a step: after the prediction."""

    def after_pred(self):
        self.learn.watched = True


@pytest.mark.parametrize("other", [Watch(), GradientClip(1.0)])
def test_a_callback_within_the_step_brings_the_plain_step_back(tiny_demo, other):
    trained(tiny_demo, "combined", gpu.PicturesOnGpu(), gpu.GraphedStep(), other)
    assert Recorded.replays == 0


def test_a_momentum_that_moves_brings_the_plain_step_back(tiny_demo):
    recipe = toys.recipe_of("combined", precision="float32")
    split = toys.split_of(tiny_demo, recipe)
    results = []
    for graphed in ([], [gpu.GraphedStep()]):
        learn = learners.build(split, recipe, "cpu")
        learn.add_cbs([gpu.PicturesOnGpu(), *graphed])
        learners.set_seed(0)
        learn.dls.train.rng.seed(0)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-3, moms=(0.95, 0.85, 0.95))
        results.append(losses_of(learn))
    assert Recorded.replays == 0
    assert np.allclose(results[0][:1], results[1][:1])
    assert np.isfinite(results[1]).all()


def test_pictures_that_do_not_fit_stay_where_they_are(tiny_demo, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 10**10))
    learn = trained(tiny_demo, "combined", gpu.PicturesOnGpu(), gpu.GraphedStep())
    assert Recorded.replays == 0 and np.isfinite(losses_of(learn)).all()
