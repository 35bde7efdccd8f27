"""Helpers for the tests of all models: short training, saving and loading, autocast, and data of the wrong shape."""

import io

import torch
from torch.distributions import Independent, Normal, kl_divergence

from echo_ext.models import build


def normal(mean, log_variance):
    """The Gaussian with these means and log variances."""
    return Normal(mean, (0.5 * log_variance).exp())


def diagonal(mean, log_variance):
    """The Gaussians of rows with independent dimensions."""
    return Independent(normal(mean, log_variance), 1)


def log_normal(x, mean=0.0, log_variance=0.0):
    """The log density of each element."""
    mean, log_variance = (torch.as_tensor(each, dtype=x.dtype) for each in (mean, log_variance))
    return normal(mean, log_variance).log_prob(x)


def kl_to_standard_normal(mean, log_variance):
    """The KL divergence of each element from N(0, 1)."""
    return kl_divergence(normal(mean, log_variance), Normal(0, 1))


def fit(model, x, *, steps, learning_rate=3e-3, clip_gradients=False):
    """Train on x with Adam; return the mean loss over the first and over the last fifth of the steps."""
    optimizer = torch.optim.Adam(model.parameter_groups(learning_rate))
    model.prepare(x)
    model.train()
    history = []
    for _ in range(steps):
        loss = model.loss(x)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if clip_gradients:
            for weight in model.parameters():
                torch.nn.utils.clip_grad_norm_(weight, 1.0)
        optimizer.step()
        history.append(loss.item())
    fifth = max(steps // 5, 1)
    return sum(history[:fifth]) / fifth, sum(history[-fifth:]) / fifth


def same_after_saving(recipe, data_shape, model, x, **settings):
    """Whether a new model with this model's state computes the same losses of x."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = build(recipe, data_shape, **settings)
    again.load_state_dict(torch.load(file, weights_only=True))
    results = []
    for each in (model.eval(), again.eval()):
        torch.manual_seed(7)
        results.append({name: value.item() for name, value in each.loss(x).items()})
    return results[0] == results[1]


def wide_under_autocast(model, x):
    """Whether losses and samples are float32 although the networks compute in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        results = [*model.loss(x).values(), model.sample(2)]
    return all(result.dtype == torch.float32 for result in results)


def refuses_other_shapes(model, x):
    """Whether a batch with one column too many raises an error that names x."""
    try:
        model.loss(torch.cat([x, x[..., :1]], dim=-1))
    except ValueError as error:
        return str(error).startswith("x must have shape (B, ")
    return False
