"""The training step against a plain loop of torch's own AdamW, precisions, and the CUDA graph."""

import copy
import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import ulvm.nn.scan as scan
import ulvm.nn.step as step
from ulvm.nn.augment import Part, augment
from ulvm.nn.epoch import Epoch, draw_epoch
from ulvm.nn.loss import segmentation_loss
from ulvm.nn.model import UltraLightVMUNet
from ulvm.nn.networks import build_network
from ulvm.nn.peers import VMUNet
from ulvm.nn.step import Learner, Steps
from ulvm.spec import ModelSpec, RunSpec, TrainSpec
from ulvm.synthetic import draw_batch

CPU = torch.device("cpu")
OURS = ModelSpec(init="mamba")
UNET = ModelSpec(network="unet")
RECIPE = TrainSpec(
    batch_size=2, learning_rate=1e-3, schedule="one-cycle", augmentation="strong", average_decay=0.5
)


@functools.cache
def drawn_part(count: int, side: int = 32) -> Part:
    images, masks = draw_batch(count, 3, (side, side))
    images_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Part(images_first, torch.from_numpy(masks).byte() * 255)


def make_learner(recipe: TrainSpec, device: torch.device = CPU, model: ModelSpec = OURS) -> Learner:
    torch.manual_seed(0)
    return Learner(RunSpec(model=model, train=recipe), device)


def small_vm_unet(spec: ModelSpec) -> nn.Module:
    """Of another paper's networks the one with dropout."""
    return VMUNet((4, 8, 16, 32), (1, 1, 1, 1), (1, 1, 1, 1), drop=0.5)


def epoch_of(recipe: TrainSpec, part: Part, number: int = 0) -> Epoch:
    generator = torch.Generator().manual_seed(number)
    return draw_epoch(part, recipe, number, generator)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in network.named_parameters()}


def test_an_epoch_is_a_plain_loop_over_torchs_adamw() -> None:
    part = drawn_part(5)
    epoch = epoch_of(RECIPE, part)
    learner = make_learner(RECIPE)
    network = copy.deepcopy(learner.model)
    average = copy.deepcopy(network)
    # Fused as ours is: AdamW makes whole steps of gradients that are nothing but rounding.
    optimizer = torch.optim.AdamW(
        network.parameters(), weight_decay=RECIPE.weight_decay, fused=True
    )
    losses = []
    for number, start in enumerate((0, 2, 4)):
        places = torch.arange(start, min(start + 2, 5))
        images, masks = augment(part, epoch.rows[places], epoch.draws[places])
        optimizer.param_groups[0]["lr"] = float(epoch.schedule[number, 0])
        optimizer.zero_grad()
        images = images.contiguous(memory_format=torch.channels_last)
        loss = segmentation_loss(network(images), masks)
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(places)
        pull = float(epoch.schedule[number, 1])
        with torch.no_grad():
            for mean, new in zip(average.parameters(), network.parameters(), strict=True):
                mean += pull * (new - mean)

    steps = Steps(learner, part)
    assert list(steps.run(epoch)) == [2, 2, 1]
    assert steps.mean_loss() == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert steps.loss.item() == pytest.approx(losses[-1], rel=1e-5)
    for ours, expected in ((learner.model, network), (learner.averaged, average)):
        torch.testing.assert_close(weights_of(ours), weights_of(expected), rtol=0, atol=1e-7)


def test_making_a_learner_takes_no_step() -> None:
    learner = make_learner(RECIPE)
    torch.manual_seed(0)
    untouched = UltraLightVMUNet(ModelSpec(init="mamba"))
    for network in (learner.model, learner.averaged):
        torch.testing.assert_close(weights_of(network), weights_of(untouched), rtol=0, atol=0)
    states = learner.optimizer.state.values()
    assert len(states) == len(list(untouched.parameters()))
    assert all(not moment.any() for state in states for moment in state.values())


def test_without_an_average_the_weights_are_the_average() -> None:
    assert make_learner(TrainSpec()).averaged is not make_learner(RECIPE).averaged
    learner = make_learner(TrainSpec())
    assert learner.averaged is learner.model


def test_batch_norms_move_and_the_average_takes_them_over() -> None:
    part = drawn_part(4)
    learner = make_learner(RECIPE, model=UNET)
    fresh = copy.deepcopy(learner.model)
    for _ in Steps(learner, part).run(epoch_of(RECIPE, part)):
        pass
    assert not torch.equal(*(each.down[0][1].running_mean for each in (learner.model, fresh)))
    buffers = [dict(each.named_buffers()) for each in (learner.model, learner.averaged)]
    torch.testing.assert_close(*buffers, rtol=0, atol=0)
    assert not torch.equal(learner.model.head.weight, learner.averaged.head.weight)


@pytest.mark.parametrize("build", [build_network, small_vm_unet])
def test_a_stored_learner_goes_on_the_same(
    build: Callable[[ModelSpec], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "build_network", build)
    part = drawn_part(4)
    first, second = make_learner(RECIPE), make_learner(RECIPE)
    for _ in Steps(first, part).run(epoch_of(RECIPE, part, 1)):
        pass
    stored = copy.deepcopy(first.state_dict())
    for learner in (first, second):
        if learner is second:
            learner.load_state_dict(stored)
        for _ in Steps(learner, part).run(epoch_of(RECIPE, part, 2)):
            pass
    torch.testing.assert_close(weights_of(first.model), weights_of(second.model), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_stays_finite_for_200_steps(precision: str) -> None:
    part = drawn_part(4, 32)
    recipe = TrainSpec(
        batch_size=1,
        learning_rate=2e-3,
        augmentation="paper",
        precision=precision,  # type: ignore[arg-type]
    )
    learner = make_learner(recipe)
    steps = Steps(learner, part)
    losses = []
    for number in range(50):  # of four steps
        for _ in steps.run(epoch_of(recipe, part, number)):
            losses.append(steps.loss.item())
    assert len(losses) == 200
    assert torch.tensor(losses).isfinite().all()
    assert all(value.isfinite().all() for value in weights_of(learner.model).values())
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_only_the_network_runs_in_lower_precision(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {}

    def watched_loss(logits: Tensor, masks: Tensor) -> Tensor:
        kinds["loss"] = logits.dtype
        return segmentation_loss(logits, masks)

    def watched_scan(*operands: Tensor) -> Tensor:
        kinds["scan"] = operands[0].dtype
        return scan_parallel(*operands)

    scan_parallel = scan._scan_parallel
    monkeypatch.setattr(step, "segmentation_loss", watched_loss)
    monkeypatch.setattr(scan, "_scan_parallel", watched_scan)
    learner = make_learner(TrainSpec(precision=precision))  # type: ignore[arg-type]
    learner.model.encoder[0].register_forward_hook(
        lambda _module, _inputs, output: kinds.update(convolution=output.dtype)
    )
    part = drawn_part(2)
    learner.loss(part.normalised(torch.arange(2)), part.soft_masks(torch.arange(2)))
    lower = getattr(torch, precision)
    assert kinds == {"convolution": lower, "scan": torch.float32, "loss": torch.float32}


@pytest.mark.parametrize(
    "build",
    [build_network, lambda _: build_network(UNET), small_vm_unet],
    ids=["ours", "unet", "vm"],
)
def test_recording_would_undo_its_trial_runs(
    build: Callable[[ModelSpec], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: random numbers and the tensors named to ``record`` are all a step changes."""

    def try_and_undo(work: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        before = [each.detach().clone() for each in changed]
        random = torch.get_rng_state()
        for _ in range(2):
            work()
            for each, value in zip(changed, before, strict=True):
                each.data.copy_(value)
        torch.set_rng_state(random)
        return work

    monkeypatch.setattr(step, "record", try_and_undo)
    monkeypatch.setattr(step, "build_network", build)
    part = drawn_part(5)
    learners = [make_learner(RECIPE) for _ in range(2)]
    learners[1].recordable = True
    for learner in learners:
        torch.manual_seed(1)
        steps = Steps(learner, part)
        for _ in steps.run(epoch_of(RECIPE, part)):
            pass
    plain, tried = (learner.state_dict() for learner in learners)
    for name in ("model", "averaged", "optimizer"):
        torch.testing.assert_close(plain[name], tried[name], rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graph_replays_equal_eager_steps(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    drawn = drawn_part(5, 64)
    part = Part(drawn.images.to(cuda), drawn.masks.to(cuda))
    recipe = TrainSpec(
        batch_size=2,
        learning_rate=1e-3,
        augmentation="strong",
        average_decay=0.5,
        precision=precision,  # type: ignore[arg-type]
    )
    results = []
    for recorded in (True, False):
        learner = make_learner(recipe, cuda)
        assert learner.recordable
        learner.recordable = recorded
        steps = Steps(learner, part)
        losses = []
        for number in range(3):
            for _ in steps.run(epoch_of(recipe, part, number)):
                pass
            losses.append(steps.mean_loss())
        results.append((losses, weights_of(learner.model), weights_of(learner.averaged)))
    torch.testing.assert_close(*results, rtol=0, atol=0)
