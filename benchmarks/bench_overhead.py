"""The overhead of a call above its kernel, and of an Echo training step above that of a Gaussian autoencoder.

    python benchmarks/bench_overhead.py [--device cuda] [--quick] [--out DIR] [--report]

A full run takes a minute; --quick takes some seconds. Three calls take turns on the CPU, on one thread and on so few
rows that the kernel's own time hardly counts: the public function, a bare autograd.Function around the same native
call, and the native call alone. Reported are medians. The bounds are 8 us above the kernel for the function, and 2.5
times the bare autograd.Function for the function with its backward pass. The training step is that of the paper's
convolutional networks (100 images, 32 latents) on the device; its bound is 5 %, and its ratio is the median over
rounds. Writes overhead.json and .md (overhead_cuda.* on CUDA).
"""

import torch
from reporting import finish, machine, make_parser, markdown_table, on_device, parse
from timing import time_calls

import echo_ext
from echo_ext import _C
from echo_ext.training import Configuration

ROWS, WIDTH, BATCH = 4, 8, 100
MAXIMUM_MICROSECONDS, MAXIMUM_RATIO, MAXIMUM_STEP_RATIO = 8.0, 2.5, 1.05


def native_calls():
    """The native forward and backward calls on existing memory, without any other work in Python."""
    problem = _C.EchoProblem(ROWS, ROWS, WIDTH, ROWS - 1, True, 0, 1)
    f, s, grad, out = (torch.rand(ROWS, WIDTH) for _ in range(4))
    grad_f, grad_s, seed = torch.empty_like(f), torch.empty_like(s), torch.tensor(1)
    tensors = (seed, f, s, f, s, out)  # holds them
    forward = [tensor.data_ptr() for tensor in tensors]
    backward = [t.data_ptr() for t in (seed, f, s, s, grad)], [0, grad_f.data_ptr(), grad_s.data_ptr()]

    def run_forward(keep=tensors):
        _C.echo_cpu_forward(problem, *forward, 1)

    def run_both(keep=(tensors, grad, grad_f, grad_s)):
        _C.echo_cpu_forward(problem, *forward, 1)
        _C.echo_cpu_backward(problem, *backward[0], *backward[1], 1)

    return run_forward, run_both


class Bare(torch.autograd.Function):
    """A minimal autograd.Function around the same native calls: no checks, no dispatch, a given seed."""

    problem = _C.EchoProblem(ROWS, ROWS, WIDTH, ROWS - 1, True, 0, 1)

    @staticmethod
    def forward(ctx, f, s, seed):
        ctx.save_for_backward(f, s, seed)
        out = torch.empty_like(f)
        f_at, s_at = f.data_ptr(), s.data_ptr()
        _C.echo_cpu_forward(Bare.problem, seed.data_ptr(), f_at, s_at, f_at, s_at, out.data_ptr(), 1)
        return out

    @staticmethod
    def backward(ctx, grad):
        f, s, seed = ctx.saved_tensors
        grad_f, grad_s = torch.empty_like(f), torch.empty_like(s)
        f_at, s_at, grad_at = f.data_ptr(), s.data_ptr(), grad.data_ptr()
        outputs = (0, grad_f.data_ptr(), grad_s.data_ptr())
        _C.echo_cpu_backward(Bare.problem, seed.data_ptr(), f_at, s_at, s_at, grad_at, *outputs, 1)
        return grad_f, grad_s, None


def make_calls():
    f, s = torch.rand(ROWS, WIDTH, requires_grad=True), torch.rand(ROWS, WIDTH, requires_grad=True)
    seed, grad = torch.tensor(1), torch.ones(ROWS, WIDTH)
    plain_f, plain_s = f.detach(), s.detach()
    native_forward, native_both = native_calls()
    given = echo_ext.echo_sample(f, s, seed=seed)
    gradients = torch.autograd.grad(given, (f, s), grad)
    bare = torch.autograd.grad(Bare.apply(f, s, seed), (f, s), grad)
    assert all(map(torch.equal, gradients, bare)), "the bare function computes something else"
    return {
        "native forward": native_forward,
        "native forward+backward": native_both,
        "autograd.Function forward+backward": lambda: torch.autograd.grad(Bare.apply(f, s, seed), (f, s), grad),
        "echo_sample forward": lambda: echo_ext.echo_sample(plain_f, plain_s, seed=seed),
        "echo_sample forward+backward": lambda: torch.autograd.grad(
            echo_ext.echo_sample(f, s, seed=seed), (f, s), grad
        ),
        "echo_sample forward, fresh seed": lambda: echo_ext.echo_sample(plain_f, plain_s),
        "echo_sample forward+backward, fresh seed": lambda: torch.autograd.grad(
            echo_ext.echo_sample(f, s), (f, s), grad
        ),
    }


def training_step(recipe, device, images):
    """A training step of the recipe's model, as a call that waits for the device."""
    torch.manual_seed(0)
    configuration = Configuration.of(recipe, "mnist")
    model = configuration.build((1, 28, 28)).to(device)
    model.prepare(images)
    optimizer = torch.optim.Adam(model.parameter_groups(configuration.learning_rate), fused=True)

    def step():
        loss = model.loss(images)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def measure(options):
    times = time_calls(make_calls(), options.seconds, threads=1, rounds=2 if options.quick else 20)
    images = torch.rand(BATCH, 1, 28, 28, device=options.device)
    steps = {recipe: training_step(recipe, options.device, images) for recipe in ("echo", "vae")}
    step_times = time_calls(steps, 0.0, rounds=1 if options.quick else 30)  # a step in each round
    return {
        "calls": {name: found.summary() for name, found in times.items()},
        "steps": {recipe: found.summary() for recipe, found in step_times.items()},
        "step_ratio": step_times["echo"].ratio(step_times["vae"]),
    }


def table(result):
    us = {name: 1e6 * summary["median"] for name, summary in result["calls"].items()}
    echo, vae = (1e3 * result["steps"][recipe]["median"] for recipe in ("echo", "vae"))
    overhead, fresh = (
        us[name] - us["native forward"] for name in ("echo_sample forward", "echo_sample forward, fresh seed")
    )
    ratio = us["echo_sample forward+backward"] / us["autograd.Function forward+backward"]
    bounds = [
        ("forward above the kernel, us", f"{overhead:.1f}", MAXIMUM_MICROSECONDS),
        ("forward, fresh seed, above the kernel, us", f"{fresh:.1f}", MAXIMUM_MICROSECONDS),
        ("forward+backward over autograd.Function", f"{ratio:.2f}", MAXIMUM_RATIO),
        (
            f"Echo training step over the Gaussian's ({echo:.1f} and {vae:.1f} ms)",
            f"{result['step_ratio']:.3f}",
            MAXIMUM_STEP_RATIO,
        ),
    ]
    lines = [
        f"{machine(result)}; calls on {ROWS} x {WIDTH} rows, one thread, medians.",
        "",
        *markdown_table(["call", "us"], [(name, f"{value:.1f}") for name, value in us.items()]),
        "",
        *markdown_table(["bound", "measured", "at most"], [(name, value, f"{most:g}") for name, value, most in bounds]),
    ]
    return "\n".join(lines) + "\n"


def main():
    options = parse(make_parser(__doc__, device=True, seconds=2.0))
    finish(on_device("overhead", options.device), options, measure, table)


if __name__ == "__main__":
    main()
