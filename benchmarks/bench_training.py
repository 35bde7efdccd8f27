"""A training step, compared with the same step in a minimal loop: the paper's convolutional networks, 100 images.

    python benchmarks/bench_training.py [--recipe echo vae] [--device cuda] [--compile] [--quick] [--out DIR] [--report]

A full run takes some minutes; --quick takes half a minute. All loops take the same rows of the same images, in turn.
On a GPU the step is also measured as a CUDA graph, compiled, and both. Writes training.json and .md (training_cuda.*
on CUDA).
"""

import torch
from reporting import finish, machine, make_parser, markdown_table, on_device, parse
from timing import time_calls

from echo_ext.data import ImageDataset
from echo_ext.training import Configuration
from echo_ext.training.fitting import make_fabric
from echo_ext.training.stepping import Objective, Stepper, make_recorder, prepare_optimizer

STEPS = 20  # of an epoch
BATCH = 100


def bare_epoch(model, optimizer, data, batches):
    total = 0.0
    for rows in batches:
        loss = model.loss(data.values(rows))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = total + loss.detach()
    return float(total)


def make_loops(recipe, device, steps, compiled):
    """An epoch of each loop, as calls that return a number on the host and therefore wait for the device."""
    images = torch.randint(256, (10 * BATCH, 1, 28, 28), dtype=torch.uint8)
    data = ImageDataset(images, torch.zeros(len(images), dtype=torch.int64)).to(device)
    batches = [torch.randperm(len(images))[:BATCH].to(device) for _ in range(steps)]
    configuration = Configuration.of(recipe, "mnist")
    fabric = make_fabric(device, configuration.precision)

    def start():
        torch.manual_seed(0)
        model = configuration.build((1, 28, 28)).to(device)
        model.prepare(data.values(slice(None)))
        return model, torch.optim.Adam(model.parameter_groups(configuration.learning_rate), fused=True)

    def bare():
        model, optimizer = start()
        if compiled:
            model.loss = torch.compile(model.loss)
        return lambda: bare_epoch(model, optimizer, data, batches)

    def training(compiled=compiled, graph=False):
        model, optimizer = start()
        wrapped = fabric.setup(Objective(model, data, compile=compiled), optimizer)
        recorder = make_recorder(fabric, configuration) if graph else None
        prepare_optimizer(optimizer, device, recorded=graph)
        stepper = Stepper(*wrapped, configuration, fabric, recorder)
        return lambda: stepper.epoch(batches, 0, lambda: None).means(batches)

    loops = {"bare": bare(), "training": training()}
    if device.type == "cuda":
        loops["graph"] = training(compiled=False, graph=True)
        loops["compiled"] = training(compiled=True)
        loops["compiled_graph"] = training(compiled=True, graph=True)
    return loops


def measure(options):
    results, steps = [], 1 if options.quick else STEPS
    for recipe in options.recipe:
        loops = make_loops(recipe, options.device, steps, options.compile)
        # An epoch takes seconds: one to warm up and one timed in each round.
        times = time_calls(loops, 0.0, rounds=1 if options.quick else 5)
        for name, found in times.items():
            seconds = {statistic: value / steps for statistic, value in found.summary().items()}
            results.append({"recipe": recipe, "loop": name, "seconds": seconds, "ratio": found.ratio(times["bare"])})
    return {"results": results}


def table(result):
    rows = [
        [each["recipe"], each["loop"], f"{1e3 * each['seconds']['median']:.2f}", f"{each['ratio']:.3f}"]
        for each in result["results"]
    ]
    lines = [
        f"{machine(result)}, {result['threads']} CPU threads, {BATCH} images of 28 x 28.",
        "",
        *markdown_table(["recipe", "loop", "a step, ms", "ratio to bare"], rows),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = make_parser(__doc__, device=True)
    parser.add_argument("--recipe", nargs="+", default=["echo", "vae"], help="default: echo vae")
    parser.add_argument("--compile", action="store_true", help="compile the bare loop and that of training too")
    options = parse(parser)
    finish(on_device("training", options.device), options, measure, table)


if __name__ == "__main__":
    main()
