"""How often tests of transfer entropy reject at the level of 5 %, with each kind of surrogate.

    python benchmarks/bench_transfer_level.py [--sets 200] [--quick] [--out DIR] [--report]

A full run takes three minutes; --quick takes some seconds. Each data set has two series of 300 rows with a memory,
which are independent, or of which one drives the other. The test conditions on one row of the target's past, with
k = 0.1 N, normal scores and 99 surrogates of the source's past. Writes transfer_level.json and transfer_level.md.
"""

import numpy as np
from reporting import finish, make_parser, markdown_table, parse
from scipy.signal import lfilter

from echo_ext import independence_test

N = 300
SURROGATES = {  # options of the test
    "shuffle": {"surrogate": "shuffle"},
    "local": {"surrogate": "local"},
    "block of 30": {"surrogate": "block", "block_length": 30},
    "circular": {"surrogate": "circular"},
    "circular, window 20": {"surrogate": "circular", "exclude_within": 20},
}


def filtered(rng, *coefficients):
    """An autoregressive series of these coefficients."""
    return lfilter([1.0], [1.0, *(-c for c in coefficients)], rng.standard_normal(N + 300))[300:]


def driven(rng, coupling):
    """A series, and another of the same memory that it drives."""
    source = filtered(rng, 0.9)
    return source, lfilter([1.0], [1.0, -0.9], coupling * np.roll(source, 1) + rng.standard_normal(N))


CASES = {
    "independent, x[t] = 0.9 x[t-1] + noise": lambda rng: (filtered(rng, 0.9), filtered(rng, 0.9)),
    "independent, x[t] = 1.6 x[t-1] - 0.7 x[t-2] + noise": lambda rng: (
        filtered(rng, 1.6, -0.7),
        filtered(rng, 1.6, -0.7),
    ),
    "the first, where the source drives the target": lambda rng: driven(rng, 0.15),
}


def rejects(source, target, seed, options):
    test = independence_test(
        target[1:], source[:-1], target[:-1], k=0.1, transform="normal", n_resamples=99, seed=seed, **options
    )
    return test.pvalue <= 0.05


def measure(options):
    cases = []
    for name, draw in CASES.items():
        for surrogate, keywords in SURROGATES.items():
            found = [rejects(*draw(np.random.default_rng(seed)), seed, keywords) for seed in range(options.sets)]
            cases.append({"case": name, "surrogate": surrogate, "rejected": float(np.mean(found))})
    return {"threads": 1, "samples": N, "sets": options.sets, "cases": cases}


def table(result):
    found = {(case["case"], case["surrogate"]): case["rejected"] for case in result["cases"]}
    rows = [
        (name, *(f"{found[name, surrogate]:.1%}" for surrogate in SURROGATES))
        for name in dict.fromkeys(case["case"] for case in result["cases"])
    ]
    return "\n".join(markdown_table(["series", *SURROGATES], rows)) + "\n"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--sets", type=int, default=200, help="number of data sets")
    options = parse(parser)
    options.sets = 3 if options.quick else options.sets
    finish("transfer_level", options, measure, table)


if __name__ == "__main__":
    main()
