"""Recorded training steps: inputs that a replay must read again, and reasons why a step cannot be recorded.

A substitute for the GPU traces the tensor operations of a step and repeats them, as a CUDA graph does. Values that
Python computed are fixed by the recording, and only tensors pass new values to a replay.
"""

import contextlib
import copy
import logging

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from echo_ext import models, training
from echo_ext.models.recipes import FOLLOW_BATCH, RECIPES, find
from echo_ext.training import Configuration, fitting, stepping
from echo_ext.training.stepping import RecordedStep

pytest.importorskip("lightning_fabric")

pytestmark = pytest.mark.usefixtures("one_thread")


class TracingRecorder:
    """A recorder on the CPU. Tracing runs the step once, and its changes are undone afterwards."""

    def __init__(self, obstacle=None):
        self.obstacle = obstacle
        self.rehearsals = self.recordings = self.replays = 0
        self.state = None

    def stream(self):
        return contextlib.nullcontext()

    def rehearse(self, step):
        self.rehearsals += 1
        self.costs = step()
        return self.costs, self.obstacle

    def record(self, step):
        self.recordings += 1
        model, optimizer = self.state
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [value for each in optimizer.state.values() for value in each.values()]
        before, random_state = copy.deepcopy([tensor.detach() for tensor in tensors]), torch.get_rng_state()
        traced = make_fx(step)()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(random_state)
        held = torch.empty_like(self.costs)

        def replay():
            self.replays += 1
            held.copy_(traced())

        return RecordedStep(held, replay)


@pytest.fixture
def recorder(monkeypatch):
    """Make every run record its steps, with learning rates in tensors as on a GPU."""
    recorder = TracingRecorder()
    stepper = fitting.Stepper

    def spying(objective, optimizer, *rest, **options):
        recorder.state = objective.model, optimizer.optimizer
        return stepper(objective, optimizer, *rest, **options)

    monkeypatch.setattr(fitting, "make_recorder", lambda *_: recorder)
    monkeypatch.setattr(fitting, "Stepper", spying)
    return recorder


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    def prepare(optimizer, device, *, recorded):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]))

    monkeypatch.setattr(fitting, "prepare_optimizer", prepare)
    monkeypatch.setattr("echo_ext.training.evaluation.write_figures", lambda *_: None)


SETTINGS = {
    "limit": 230,  # two full batches and a smaller one
    "batch_size": 100,
    "epochs": 6,
    "latent_dim": 4,
    "warm_up_epochs": 2,
    "binarization": "dynamic",
    "gradient_clip": 30.0,
}


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        *(("echo", {}), ("echo", {"target_rate": 9.0}), ("echo-matrix", {})),
        *(("vae-vamp", {}), ("echo-tc", {}), ("mim", {})),
    ],
)
def test_recorded_steps_equal_ordinary_steps(tmp_path, recorder, recipe, model):
    model = {**model, **{name: 20 for name in FOLLOW_BATCH if name in find(recipe).model_settings}}
    model |= {"discriminator_width": 20} if recipe == "echo-tc" else {}
    settings = {**SETTINGS, "model_settings": model}
    configuration = Configuration.of(recipe, "digits", **settings)
    recorded = training.train(configuration, tmp_path / "recorded")
    alone = training.train(configuration, tmp_path / "alone", cuda_graph=False)

    assert recorded == {**alone, "seconds": recorded["seconds"]}
    left, right = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("recorded", "alone"))
    assert all(torch.equal(left["state_dict"][name], right["state_dict"][name]) for name in right["state_dict"])
    assert left["history"][-1]["valid_loss"] == right["history"][-1]["valid_loss"]
    assert recorder.replays > 0


def test_step_is_recorded_once_for_each_warm_up_weight(tmp_path, recorder):
    configuration = Configuration.of("vae", "digits", **{**SETTINGS, "limit": 600, "epochs": 4})
    training.train(configuration, tmp_path)
    assert recorder.recordings == recorder.rehearsals == 3
    # Six batches in each of four epochs; three steps of each warm-up weight are rehearsals.
    assert recorder.replays == 4 * 6 - 3 * 3


def test_step_that_waits_for_the_device_is_not_recorded(tmp_path, recorder, caplog):
    recorder.obstacle = "called a synchronizing CUDA operation (model.py:7)"
    configuration = Configuration.of("vae", "digits", **SETTINGS)
    with caplog.at_level(logging.WARNING):
        recorded = training.train(configuration, tmp_path / "recorded")
    alone = training.train(configuration, tmp_path / "alone", cuda_graph=False)
    assert recorded == {**alone, "seconds": recorded["seconds"]}
    assert (recorder.rehearsals, recorder.recordings) == (1, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "vae: steps are launched kernel by kernel, because a CUDA graph cannot contain them: "
        "called a synchronizing CUDA operation (model.py:7)"
    ]


def test_optimizer_switches_between_recorded_and_ordinary_steps():
    parameter = torch.nn.Parameter(torch.zeros(3))
    saved = torch.optim.Adam([parameter], lr=0.25, fused=True).state_dict()
    for recorded in (True, False, True):
        optimizer = torch.optim.Adam([parameter], fused=True)
        optimizer.load_state_dict(saved)
        stepping.prepare_optimizer(optimizer, torch.device("cpu"), recorded=recorded)
        (group,) = optimizer.param_groups
        assert group["capturable"] == isinstance(group["lr"], torch.Tensor) == recorded
        assert float(group["lr"]) == 0.25
        stepping.set_learning_rate(group, 0.5)
        assert float(group["lr"]) == 0.5
        stepping.set_learning_rate(group, 0.25)
        saved = optimizer.state_dict()


# Operations whose result the host must read in the middle of a step.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::randperm",
}


class WaitDetector(TorchDispatchMode):
    """Collects the operations that prevent a step from being recorded as a CUDA graph."""

    def __init__(self):
        super().__init__()
        self.waiting = set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name = operation._schema.name
        by_mask = name == "aten::index" and any(at is not None and at.dtype == torch.bool for at in arguments[1])
        if name in WAITING or by_mask:
            self.waiting.add(name)
        return operation(*arguments, **(keywords or {}))


def test_wait_detector_finds_waiting_operations():
    x = torch.arange(5.0)
    for wait in (
        lambda: x.sum().item(),
        lambda: bool(x[0] > 0),
        lambda: x[x > 2],
        lambda: x.unique(),
    ):
        with WaitDetector() as detector:
            wait()
        assert detector.waiting


@pytest.mark.parametrize(
    ("recipe", "settings"), [*((name, {}) for name in sorted(RECIPES)), ("echo", {"target_rate": 9.0})]
)
def test_no_recipe_waits_for_the_device_in_a_step(recipe, settings):
    few = {name: 20 for name in FOLLOW_BATCH if name in find(recipe).model_settings}
    model = models.build(recipe, (1, 8, 8), latent_dim=6, **few, **settings)
    x = torch.rand(24, 1, 8, 8).round()
    model.prepare(x)
    model.train()
    model.warm_up_weight = 0.5
    model.loss(x)["loss"].backward()  # the first batch fills banks
    with WaitDetector() as detector:
        model.loss(x)["loss"].backward()
    assert not detector.waiting
