"""A step of training next to the same step in a bare hand-written loop: the paper's convolutional pair, 100 images.

All loops take the same rows of the same images. Rounds alternate, so that what else the machine does falls on all
alike. On a GPU the step is also recorded as a CUDA graph, compiled, and both.

    python benchmarks/bench_training.py [--recipe echo vae] [--device cuda] [--compile] [--out FILE.json]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from echo_ext.data import ImageDataset
from echo_ext.training import Configuration
from echo_ext.training.fitting import make_fabric
from echo_ext.training.stepping import Objective, Stepper, make_recorder, prepare_optimizer

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


def measure(recipe, device, steps, rounds, compiled):
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
        stepper = Stepper(*wrapped, configuration, fabric, recorder=recorder)
        return lambda: stepper.epoch(batches, 0, lambda: None).means(batches)

    loops = {"bare": bare(), "training": training()}
    if device.type == "cuda":
        loops["graph"] = training(compiled=False, graph=True)
        loops["compiled"] = training(compiled=True)
        loops["compiled_graph"] = training(compiled=True, graph=True)
    times = {name: [] for name in loops}
    for round_ in range(rounds + 1):
        for name, loop in loops.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            loop()  # ends with a number on the host, and so waits for the device
            if round_:  # the first warms up
                times[name].append((time.perf_counter() - begin) / steps * 1e3)
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratios = {
        f"{name}_ratio": statistics.median(ours / bare for ours, bare in zip(times[name], times["bare"], strict=True))
        for name in loops
        if name != "bare"
    }
    return {"recipe": recipe, **{f"{name}_ms": value for name, value in medians.items()}, **ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["echo", "vae"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {BATCH} images of 28 x 28")
    results = []
    for recipe in arguments.recipe:
        result = measure(recipe, device, arguments.steps, arguments.rounds, arguments.compile)
        results.append(result)
        loops = [name.removesuffix("_ms") for name in result if name.endswith("_ms")]
        cells = (f"{name} {result[f'{name}_ms']:.2f} ms ({result.get(f'{name}_ratio', 1.0):.3f})" for name in loops)
        print(f"{recipe:<12} " + "   ".join(cells), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"device": name, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
