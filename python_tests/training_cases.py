"""Helpers for the tests of training: models with predictable training, and the comparison of runs."""

import math
from pathlib import Path

import torch
from torch import nn

from echo_ext.models import Model
from echo_ext.models.recipes import RECIPES, Recipe


class Pixelwise(Model):
    """A model of one logit for each pixel, whose loss is convex and has no noise."""

    def __init__(self, data_shape, latent_dim, *, beta=1.0):
        super().__init__(data_shape)
        self.latent_dim = latent_dim
        self.beta = beta
        self.logits = nn.Parameter(torch.zeros(math.prod(data_shape)))
        self.seen = []  # (warm_up_weight, training, rows) of each call
        self.prepared = self.refreshed = 0

    def loss(self, x):
        self.seen.append((self.warm_up_weight, self.training, len(x)))
        logits = self.logits.expand(len(x), -1)
        distortion = nn.functional.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
        return {"loss": distortion.mean(), "rate": 0 * self.logits.sum(), "distortion": distortion.mean()}

    def encode(self, x):
        return x.flatten(1)[:, : self.latent_dim]

    def decode(self, z):
        return torch.sigmoid(self.logits).expand(len(z), -1).view(-1, *self.data_shape)

    def sample(self, n):
        return self.decode(torch.zeros(n, self.latent_dim))

    def prepare(self, x):
        self.prepared += 1

    def refresh(self, x):
        self.refreshed += 1


class BreaksDown(Pixelwise):
    """A model whose distortion is NaN in the step ``at``, counted from 1."""

    def __init__(self, data_shape, latent_dim, *, at):
        super().__init__(data_shape, latent_dim)
        self.at = at

    def loss(self, x):
        terms = super().loss(x)
        if sum(training for _, training, _ in self.seen) == self.at:
            terms["distortion"] = terms["distortion"] * math.nan
            terms["loss"] = terms["distortion"] + terms["rate"]
        return terms


class Stands(Pixelwise):
    """A model that does not learn."""

    def loss(self, x):
        terms = super().loss(x)
        return {name: value * 0 + 1 for name, value in terms.items()}


class Scripted(Pixelwise):
    """A model whose validation losses after each step are given, with a copy of its weights as stored statistics."""

    def __init__(self, data_shape, latent_dim, *, losses):
        super().__init__(data_shape, latent_dim)
        self.losses = losses
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("copied", torch.zeros_like(self.logits))

    def loss(self, x):
        terms = super().loss(x)
        if self.training:
            self.steps += 1
        else:
            terms["loss"] = torch.tensor(float(self.losses[int(self.steps) - 1]))
        return terms

    def encode_mean(self, x):
        return self.encode(x)

    def refresh(self, x):
        self.copied.copy_(self.logits.detach())


class PassesAfter:
    """A deadline that has passed after a number of steps."""

    def __init__(self, steps):
        self.steps = steps

    @property
    def has_passed(self):
        self.steps -= 1
        return self.steps < 0


CASES = {
    "pixelwise": Recipe("one logit for each pixel", Pixelwise, {"beta": 1.0}, {"epochs": 3, "learning_rate": 1e-2}),
    "breaks-down": Recipe("NaN in one step", BreaksDown, {"at": 5}),
    "stands": Recipe("does not learn", Stands, {"beta": 1.0}),
    "scripted": Recipe("given validation losses", Scripted, {"losses": [1.0]}, {"learning_rate": 1e-2}),
}


def register():
    RECIPES.update(CASES)


def checkpoint(path, name="last.ckpt"):
    return torch.load(Path(path) / name, weights_only=True)


def without_progress(errors):
    """What a command prints on stderr, without the lines that a slow machine adds."""
    return "".join(line for line in errors.splitlines(keepends=True) if "% [" not in line)


def same(left, right):
    """Whether two results are equal bit for bit, except for the seconds."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left if key != "seconds")
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right
