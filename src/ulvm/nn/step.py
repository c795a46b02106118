"""The training step: rows → augmented batch → loss → backward → AdamW → moving average.

On CUDA a whole step is recorded as a CUDA graph, with the sum of the gradients over the GPUs in
it; everything that differs from step to step is read from the epoch's tables on the device, found
by a counter that the step advances. Elsewhere, and in float16 (the loss scale is adjusted outside),
the same function runs eagerly.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ulvm.nn.augment import Part, augment
from ulvm.nn.distributed import Processes
from ulvm.nn.epoch import Epoch, draw_epoch
from ulvm.nn.graph import record
from ulvm.nn.kernels import accelerate
from ulvm.nn.kernels.check import use_kernels_if_right
from ulvm.nn.loss import segmentation_loss, targets_of
from ulvm.nn.model import UltraLightVMUNet
from ulvm.nn.networks import build_network
from ulvm.spec import RunSpec


class Learner:
    """The network, its moving average and its optimizer: all that a step changes.

    Args:
        run: What to train.
        device: Where.
        processes: Who shares the work.

    ``averaged`` is ``model`` itself where the recipe keeps no average.
    """

    def __init__(
        self, run: RunSpec, device: torch.device, processes: Processes | None = None
    ) -> None:
        self.processes = processes or Processes()
        self.device, self.recipe = device, run.train
        self.classes = run.model.classes
        self.model = accelerate(build_network(run.model).to(device))
        if device.type == "cpu":  # the full-size convolutions run faster and stay the same
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.model) if run.train.average_decay else self.model
        self.precision = getattr(torch, run.train.precision)
        half = self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)  # else it passes all on
        self.recordable = device.type == "cuda" and not half
        self._rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self._rate,
            weight_decay=run.train.weight_decay,
            fused=True,
            capturable=self.recordable,
        )
        self._make_moments()

    def _make_moments(self) -> None:
        """Make AdamW's state, which a graph must find in place, by a step that changes nothing."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with warnings.catch_warnings():
            # It is right, once: this step runs without a graph.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            self.optimizer.step()  # at rate 0
        self.optimizer.zero_grad(set_to_none=True)
        for state in self.optimizer.state.values():
            state["step"].zero_()

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Start from a model's tensors; those that are not given stay as they were drawn."""
        for network in (self.model, self.averaged):
            network.load_state_dict({**network.state_dict(), **state})

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch: only the network runs in the recipe's precision."""
        images = images.contiguous(memory_format=torch.channels_last)
        lower = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=lower):
            logits = self.model(images)
        return segmentation_loss(logits.float(), targets_of(masks, self.classes))

    def update(self, loss: Tensor, rate: Tensor, pull: Tensor) -> None:
        """Take one step down the loss, or down the processes' mean of it.

        Args:
            loss: Scalar with its graph.
            rate: Scalar, AdamW's learning rate.
            pull: Scalar in 0..1, how far the average moves towards the new weights.
        """
        self._rate.copy_(rate)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        weights: list[Tensor] = list(self.model.parameters())
        self.processes.average([each.grad for each in weights if each.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not self.model:
            with torch.no_grad():
                averaged: list[Tensor] = list(self.averaged.parameters())
                way = torch._foreach_sub(weights, averaged)
                torch._foreach_mul_(way, pull)
                torch._foreach_add_(averaged, way)
                # Batch norms' statistics are averages already.
                for ours, theirs in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                    ours.copy_(theirs)

    def tensors(self) -> list[Tensor]:
        """Every tensor that a step changes in place: ``loss`` the buffers, ``update`` the rest."""
        moments = [each for state in self.optimizer.state.values() for each in state.values()]
        networks = [self.model] if self.averaged is self.model else [self.model, self.averaged]
        weights = [each for network in networks for each in network.parameters()]
        statistics = [each for network in networks for each in network.buffers()]
        return [*weights, *statistics, *moments, self._rate]

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # What dropout draws from.
            "random": {self.device.type: _random_of(self.device).get_rng_state()},
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Take over a stored state, of any device and number of processes.

        Only before ``Steps`` are made: their graphs keep to the optimizer's tensors of then.
        """
        self.model.load_state_dict(stored["model"])
        self.averaged.load_state_dict(stored["averaged"])
        ours = {"lr": self._rate, "fused": True, "capturable": self.recordable}
        for group in stored["optimizer"]["param_groups"]:
            group.update(ours)
        self.optimizer.load_state_dict(stored["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate  # loading made a copy
        self.scaler.load_state_dict(stored["scaler"])
        if self.device.type in stored.get("random", {}):  # another device draws other numbers
            _random_of(self.device).set_rng_state(stored["random"][self.device.type].cpu())


class Steps:
    """The steps of an epoch, one batch each; the last may be smaller.

    Args:
        learner: Who learns; any stored state is already loaded.
        part: The training pictures.
    """

    def __init__(self, learner: Learner, part: Part) -> None:
        self.learner = learner
        self.part = part
        recipe = learner.recipe
        self.loss = torch.zeros((), device=learner.device)  # of the last step, here
        self._loss_sum = torch.zeros((), device=learner.device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=learner.device)
        # Where a graph finds the numbers of each epoch; until the first, those of any.
        any_epoch = draw_epoch(part, recipe, 0, torch.Generator())
        self._epoch = any_epoch.to(learner.device)
        full, last = divmod(part.drawn, recipe.batch_size)
        self._counts = [recipe.batch_size] * full + [last] * (last > 0)
        # Other papers' networks hold running averages, which this would move.
        if learner.device.type == "cuda" and isinstance(learner.model, UltraLightVMUNet):
            first = torch.arange(min(recipe.batch_size, len(part)), device=learner.device)
            use_kernels_if_right(learner.model, part.normalised(first), part.soft_masks(first))
        self._step = {count: self._make_step(count) for count in set(self._counts)}

    def run(self, epoch: Epoch) -> Iterator[int]:
        """Run the steps of an epoch, without waiting for a GPU; yields each one's pictures."""
        self._epoch.copy_(epoch)
        self._counter.zero_()
        self._loss_sum.zero_()
        self.learner.model.train()
        for count in self._counts:
            self._step[count]()
            yield count

    def mean_loss(self) -> float:
        """The mean over the epoch's pictures of all processes; waits for the GPU."""
        return float(self.learner.processes.sum(self._loss_sum)) / self.part.drawn

    def _make_step(self, count: int) -> Callable[[], None]:
        step: Callable[[], None] = functools.partial(self._work, count)
        if not self.learner.recordable:
            return step
        self.learner.model.train()
        return record(step, [*self.learner.tensors(), self.loss, self._loss_sum, self._counter])

    def _work(self, count: int) -> None:
        """One step on this process's share of the next ``count`` pictures."""
        processes = self.learner.processes
        share = processes.share(count)
        # Means over each share, weighted so that the processes' mean is that over the batch. One
        # without a share must still take part in the averaging: a picture that weighs nothing.
        weight = len(share) * processes.count / count
        taken = share if share else range(1)
        places = torch.arange(taken.start, taken.stop, device=self._counter.device)
        places = places + self._counter * self.learner.recipe.batch_size
        images, masks = augment(self.part, self._epoch.rows[places], self._epoch.draws[places])
        loss = self.learner.loss(images, masks)
        rate, pull = self._epoch.schedule.index_select(0, self._counter)[0]
        self.learner.update(loss * weight, rate, pull)
        self.loss.copy_(loss.detach())
        self._loss_sum += loss.detach() * len(share)
        self._counter += 1


def _random_of(device: torch.device) -> Any:
    """The module with the state of the random numbers that are drawn on a device."""
    return {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch.random)
