"""A GPU kept busy at small batches: pictures that stay on it, whole training steps as a CUDA graph.

fastai callbacks that ``learners.build`` adds on a CUDA GPU, and nowhere else. Batches, their order
and random draws stay fastai's; results are those of the plain step but for rounding.
"""

from collections.abc import Callable, Iterator

import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.schedule import ParamScheduler
from fastai.data.core import TfmdDL
from fastai.learner import AvgSmoothLoss, CastToTensor
from fastai.torch_core import TensorCategory, TensorImage
from torch import Tensor, nn

SHARE = 0.25  # of the free memory of the GPU that pictures may fill
INSIDE = ["before_batch", "after_pred", "after_loss", "before_backward", "before_step"]
INSIDE += ["after_step"]  # events within a step: a replayed one has none


class Resident:
    """The batches of a fastai DataLoader, cut out of pictures that lie on the GPU.

    ``rows``: those of the batch at hand. ``made``: the batch of a captured step, which its replay
    fills; None where there is none.
    """

    def __init__(self, loader: TfmdDL, device: torch.device):
        items = [loader.dataset[row] for row in range(len(loader.dataset))]
        self.loader, self.rows, self.made = loader, None, None
        self.pictures, self.targets = (part.to(device) for part in loader.create_batch(items))

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def to_detach(self, values: Tensor, cpu: bool = True, gather: bool = True) -> Tensor:
        """What fastai would copy to the CPU after each batch, and wait for, stays where it is."""
        return values.detach()

    def cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and targets of some rows, augmented."""
        pictures, targets = TensorImage(self.pictures[rows]), TensorCategory(self.targets[rows])
        return self.loader.after_batch((pictures, targets))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.loader.randomize()
        self.loader.before_iter()
        order = torch.as_tensor(self.loader.get_idxs(), device=self.pictures.device)
        for rows in order.split(self.loader.bs)[: len(self.loader)]:
            self.rows = rows
            yield self.made or self.cut(rows)
        self.loader.after_iter()


class PicturesOnGpu(Callback):
    """Decoded pictures are copied to the GPU before the first batch, where they fit."""

    resident: tuple[Resident, ...] = ()

    def before_fit(self):
        self.resident, device = (), self.dls.device
        for loader in self.dls.loaders:
            size = len(loader.dataset) and len(loader.dataset) * loader.dataset[0][0].nbytes
            if 0 < size < SHARE * torch.cuda.mem_get_info()[0]:
                self.resident += (Resident(loader, device),)

    def before_train(self):
        for resident in self.resident:
            if resident.loader is self.dl:
                self.learn.dl = resident

    before_validate = before_train

    def after_fit(self):
        self.resident = ()


class LossOnGpu(AvgSmoothLoss):
    """fastai's smoothed loss without a copy to the CPU, and so a wait, after each batch."""

    def reset(self):
        self.count, self.val = 0, 0.0

    def accumulate(self, learn):
        self.count += 1
        loss = learn.loss.detach().mean()
        self.val = loss + self.beta * (self.val - loss)


def record(model: nn.Module, compute: Callable[[], tuple], update: Callable[[], None]) -> tuple:
    """(CUDA graph of ``compute`` and ``update``, what ``compute`` gives); nothing is computed yet.

    One run of ``compute`` warms up: gradients, batch norms and random numbers are put back.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    random, side, graph = torch.cuda.get_rng_state(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_rng_state(random)
    for buffer, before in buffers:
        buffer.copy_(before)
    model.zero_grad()
    with torch.cuda.graph(graph):
        result = compute()
        update()
    return graph, result


class GraphedStep(Callback):
    """Augmentation, forward and backward pass and optimiser are captured after the first batch of a
    fit, and replayed for the others.

    Callbacks that act within a step, and hyper-parameters other than the rate that change, bring
    the plain step back.
    """

    order, run_valid = 70, False  # after the rates are set

    def before_fit(self):
        self.graph, self.recorder.smooth_loss = None, LossOnGpu()
        ours = CastToTensor, ParamScheduler, GraphedStep
        others = [type(one) for one in self.learn.cbs if not isinstance(one, ours)]
        self.possible = not any(hasattr(kind, event) for kind in others for event in INSIDE)

    def after_batch(self):
        if self.graph is None and self.possible and isinstance(self.dl, Resident):
            self._capture()

    def before_batch(self):
        if self.graph is None:
            return
        if self._fixed() != self.fixed or len(self.dl.rows) != len(self.rows):
            self.graph, self.possible, self.dl.made = None, False, None
            pictures, targets = self.dl.cut(self.dl.rows)
            self.learn.xb, self.learn.yb = (pictures,), (targets,)
            return
        self.rows.copy_(self.dl.rows)
        for rate, group in zip(self.rates, self.opt.opt.param_groups):
            rate.fill_(group["lr"])
        self.graph.replay()
        self.learn.pred, self.learn.loss = self.answers
        raise CancelBatchException

    def after_fit(self):
        self.graph = self.answers = None  # with them goes the memory of the graph
        losses = self.recorder.losses
        self.recorder.losses = list(torch.stack(losses).cpu()) if losses else []
        self.opt.zero_grad()

    def _fixed(self) -> list[dict]:
        """What the captured step holds for good: the hyper-parameters but the rate."""
        changing = {"params", "lr", "capturable"}
        return [
            {name: value for name, value in group.items() if name not in changing}
            for group in self.opt.opt.param_groups
        ]

    def _compute(self):
        batch = self.dl.cut(self.rows)
        pictures, targets = (part.as_subclass(Tensor) for part in batch)
        with self.learn.computing(cache_enabled=False):
            answer = self.model(pictures)
            loss = self.loss_func(answer, targets)
            loss.backward()
        return batch, answer.detach(), loss.detach()

    def _update(self):
        """The optimiser's step with rates that a later replay reads anew."""
        groups = self.opt.opt.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates):
            group["lr"], group["capturable"] = rate, True
        self.opt.step()
        for group, values in zip(groups, before):
            group.clear()
            group.update(values)

    def _capture(self):
        for name in ("pred", "loss", "loss_grad"):  # they hold the last step's graph of gradients
            setattr(self.learn, name, None)
        self.opt.zero_grad()
        self.rows, self.fixed = self.dl.rows.clone(), self._fixed()
        device = self.rows.device
        groups = self.opt.opt.param_groups
        self.rates = [torch.tensor(float(group["lr"]), device=device) for group in groups]
        self.graph, (self.dl.made, *self.answers) = record(self.model, self._compute, self._update)
