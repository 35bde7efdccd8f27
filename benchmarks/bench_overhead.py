"""What a call costs beside its kernel, and a training step of the Echo autoencoder beside the Gaussian one's.

    python benchmarks/bench_overhead.py [--out benchmarks/results] [--repeats 300] [--rounds 30]

Calls are timed on rows so few that the kernel takes next to nothing: the public function, a bare autograd.Function over
the same native call, and the native call alone. All take turns within each repeat, on one thread; medians. Bars: the
function at most 8 us above its kernel, and with its backward pass at most 2.5 times the bare autograd.Function. The
training step is that of the paper's convolutional pair (100 images, 32 latents), where the bar is 5 %; the ratio is the
median over rounds of neighbouring steps. Writes overhead.json and overhead.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import echo_ext
from echo_ext import _C
from echo_ext.training import Configuration

ROWS, WIDTH, BATCH, LATENTS = 4, 8, 100, 32
CALLS = 20  # between two looks at the clock
LEAST_MICROSECONDS, LEAST_RATIO, LEAST_STEP_RATIO = 8.0, 2.5, 1.05


def native_calls():
    """The native forward and backward on memory that is already there: what is left when Python does nothing else."""
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
    """The least that an autograd.Function over the same native calls can be: no check, no choice, a given seed."""

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


def calls():
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


def microseconds(repeats):
    """Medians by name."""
    subjects = calls()
    times = {name: [] for name in subjects}
    for repeat in range(repeats + 3):
        for name, call in subjects.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            if repeat >= 3:  # the first warm up
                times[name].append((time.perf_counter() - begin) / CALLS * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def training_step(recipe, device, images):
    """A step of the recipe's own model, as a call that ends when the device has."""
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


def step_ratio(device, rounds):
    """Milliseconds of a step of each, and the median ratio of neighbours; who goes first alternates."""
    images = torch.rand(BATCH, 1, 28, 28, device=device)
    steps = {recipe: training_step(recipe, device, images) for recipe in ("echo", "vae")}
    times = {recipe: [] for recipe in steps}
    for round_ in range(rounds + 2):
        for recipe in sorted(steps, reverse=round_ % 2 == 1):
            begin = time.perf_counter()
            steps[recipe]()
            if round_ >= 2:
                times[recipe].append((time.perf_counter() - begin) * 1e3)
    ratio = statistics.median(echo / vae for echo, vae in zip(times["echo"], times["vae"], strict=True))
    return {**{f"{recipe}_ms": statistics.median(each) for recipe, each in times.items()}, "ratio": ratio}


def report(result):
    times, step = result["microseconds"], result["step"]
    lines = [
        f"{result['device']}, torch {result['torch']}; calls on {ROWS} x {WIDTH} rows, one thread, medians.",
        "",
        "| call | us |",
        "|---|---|",
        *(f"| {name} | {value:.1f} |" for name, value in times.items()),
        "",
        "| bar | measured | at most |",
        "|---|---|---|",
        f"| forward above the kernel, us | {result['forward_overhead_us']:.1f} | {LEAST_MICROSECONDS:g} |",
        f"| forward, fresh seed, above the kernel, us | {result['fresh_overhead_us']:.1f} | {LEAST_MICROSECONDS:g} |",
        f"| forward+backward over autograd.Function | {result['both_ratio']:.2f} | {LEAST_RATIO:g} |",
        f"| Echo training step over the Gaussian's ({step['echo_ms']:.1f} and {step['vae_ms']:.1f} ms) "
        f"| {step['ratio']:.3f} | {LEAST_STEP_RATIO:g} |",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="of the training step; calls are timed on the CPU")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    device, threads = torch.device(options.device), torch.get_num_threads()
    torch.set_num_threads(1)
    times = microseconds(options.repeats)
    torch.set_num_threads(threads)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "threads_of_the_step": threads,
        "microseconds": times,
        "forward_overhead_us": times["echo_sample forward"] - times["native forward"],
        "fresh_overhead_us": times["echo_sample forward, fresh seed"] - times["native forward"],
        "both_ratio": times["echo_sample forward+backward"] / times["autograd.Function forward+backward"],
        "step": step_ratio(device, options.rounds),
    }
    table = report(result)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if device.type == "cpu" else f"_{device.type}"
    (options.out / f"overhead{suffix}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"overhead{suffix}.md").write_text(table)


if __name__ == "__main__":
    main()
