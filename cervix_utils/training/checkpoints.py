"""A training that is killed goes on from its last kept epoch: one safetensors file, no pickle."""

import json
import random
import time
from pathlib import Path

import torch
from fastai.callback.core import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cervix_utils import paths

EVERY, SHARE = 60.0, 0.02  # seconds between two, and the part of the time that they may take


class Checkpoint(Callback):
    """Keeps the whole state of a fit in ``file`` at the end of an epoch, and goes on from it.

    Weights, optimiser, losses and random states, so that on a CPU the result is that of
    a fit without interruption, bit by bit. Nothing is kept before ``EVERY`` seconds; a disk that is
    full costs no training.
    """

    order = 80  # after all callbacks that begin anew with a fit

    def __init__(self, file: Path):
        self.file, self.resumed = file, False

    def before_fit(self):
        self.cost, self.kept = 0.0, time.perf_counter()
        if not self.file.is_file():
            return
        try:
            with safe_open(self.file, "pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
            tensors = load_file(self.file)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            print(f"{self.file.name} is damaged ({error}): the training begins anew", flush=True)
            return
        self._put_back(facts, tensors)
        print(f"goes on after epoch {facts['epoch']}", flush=True)

    def after_epoch(self):
        start = time.perf_counter()
        if start - self.kept < max(EVERY, self.cost / SHARE):
            return
        facts = json.dumps(self._facts(), default=list)
        try:
            with paths.whole(self.file) as draft:
                save_file(self._tensors(), draft, {"facts": facts})
        except (OSError, SafetensorError) as error:
            print(f"this epoch could not be kept ({error})", flush=True)
        self.kept = time.perf_counter()
        self.cost = self.kept - start

    def _facts(self) -> dict:
        """What is no tensor, as JSON has it."""
        facts = {"epoch": self.epoch + 1, "values": list(self.recorder.values)}
        facts |= {"batches": self.recorder.smooth_loss.count, "python": random.getstate()}
        return facts | {"order": self.dls.train.rng.getstate()}

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"model": self.model.state_dict()}
        for number, parameter in enumerate(self.model.parameters()):  # frozen ones have no state
            parts[f"optimiser {number}"] = self.opt.opt.state.get(parameter, {})
        smooth = torch.as_tensor(self.recorder.smooth_loss.val)
        parts["state"] = {"smooth": smooth, "random": torch.get_rng_state()}
        return {
            f"{part} {name}": value.detach().cpu().contiguous()
            for part, values in parts.items()
            for name, value in values.items()
        }

    def _put_back(self, facts: dict, tensors: dict[str, Tensor]) -> None:
        self.resumed, self.learn.first_epoch = True, facts["epoch"]
        self.recorder.values = facts["values"]
        self.model.load_state_dict(_part(tensors, "model"))
        for number, parameter in enumerate(self.model.parameters()):
            state = _part(tensors, f"optimiser {number}")
            self.opt.opt.state[parameter] = {k: _like(parameter, v) for k, v in state.items()}
        smooth, self.recorder.smooth_loss.count = tensors["state smooth"], facts["batches"]
        self.recorder.smooth_loss.val = smooth.to(self.dls.device)
        torch.set_rng_state(tensors["state random"])
        for place, state in ((random, facts["python"]), (self.dls.train.rng, facts["order"])):
            place.setstate((state[0], tuple(state[1]), state[2]))


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Those called ``<kind> <name>``, by name."""
    start = f"{kind} "
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` where and in the layout in memory that the optimiser has for ``parameter``."""
    alike = value.shape == parameter.shape
    return torch.empty_like(parameter).copy_(value) if alike else value.to(parameter.device)
