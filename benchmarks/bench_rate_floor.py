"""The cost of a lower rate floor: the time of a channel's training step against its minimum rate.

    python benchmarks/bench_rate_floor.py [--dim 32] [--quick] [--out DIR] [--report]

A full run takes a minute; --quick takes some seconds. The rates of a channel with D terms are at least -log
max_scale(D) nats per dimension. There are three ways to get D terms: batches of D + 1 rows with sampling="ring", the
same with "permutation", and batches of 100 rows that are completed from the bank ("ring"). Scales are at their
maximum, so that no row can stop early. Reported are minimum times on one thread. Writes rate_floor.json and .png.
"""

import math

import torch
from reporting import finish, make_parser, parse
from timing import time_calls

import echo_ext

TERMS = (99, 255, 511, 1023, 2047, 4095, 8191)
SMALL_BATCH = 100
WAYS = {  # name: sampling, rows of a batch for so many terms
    "ring, whole batch": ("ring", lambda terms: terms + 1),
    "permutation, whole batch": ("permutation", lambda terms: terms + 1),
    "ring, batch of 100 and bank": ("ring", lambda terms: SMALL_BATCH),
}


def make_step(sampling, rows, terms, dim):
    """Forward and backward at the largest scales, as a call that returns the mean rate."""
    channel = echo_ext.EchoChannel(terms, sampling=sampling, bank_size=terms + 1)
    channel(torch.randn(terms + 1, dim), torch.zeros(terms + 1, dim))  # fills the bank
    f_raw = torch.randn(rows, dim, requires_grad=True)
    s_raw = torch.full((rows, dim), 15.0, requires_grad=True)

    def step():
        z, rate = channel(f_raw, s_raw)
        torch.autograd.backward([z.sum() + rate.sum()])
        return rate.detach().mean()

    return step


def measure(options):
    torch.manual_seed(0)
    cases = []
    print(f"{'terms':>6} {'floor':>8} {'rate':>8} {'ms':>9} {'us/row':>8}  way")
    for terms in TERMS[: 2 if options.quick else None]:
        rows = {way: batch(terms) for way, (_, batch) in WAYS.items()}
        steps = {way: make_step(WAYS[way][0], rows[way], terms, options.dim) for way in WAYS}
        times = time_calls(steps, options.seconds, threads=1)
        floor = -math.log(echo_ext.max_scale(terms))
        for way, step in steps.items():
            seconds, rate = times[way].summary(), float(step())
            cases.append(
                {"way": way, "terms": terms, "rows": rows[way], "floor": floor, "rate": rate, "seconds": seconds}
            )
            best = seconds["minimum"]
            print(f"{terms:6} {floor:8.5f} {rate:8.5f} {1e3 * best:9.3f} {1e6 * best / rows[way]:8.3f}  {way}")
    return {"threads": 1, "dim": options.dim, "cases": cases}


def plot(result):
    from matplotlib.figure import Figure

    cases = result["cases"]
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=150)
    axes = figure.subplots()
    for way in WAYS:
        own = [case for case in cases if case["way"] == way]
        times = [1e3 * case["seconds"]["minimum"] for case in own]
        axes.plot([case["floor"] for case in own], times, "o-", label=way)
    for case in cases[:: len(WAYS)]:
        axes.axvline(case["floor"], color="0.9", zorder=0)
        axes.annotate(case["terms"], (case["floor"], 1.01), xycoords=("data", "axes fraction"), fontsize=7, ha="center")
    axes.set(xscale="log", yscale="log", xlabel="rate floor, nats per dimension (above: terms)")
    axes.set_ylabel("channel's forward + backward, ms")
    axes.invert_xaxis()
    axes.legend()
    return figure


def main():
    parser = make_parser(__doc__, seconds=1.0)
    parser.add_argument("--dim", type=int, default=32, help="dimensions of the channel; default: 32")
    finish("rate_floor", parse(parser), measure, plot=plot)


if __name__ == "__main__":
    main()
