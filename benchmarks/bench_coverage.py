"""How often the interval of 1.96 standard errors contains the true value.

    python benchmarks/bench_coverage.py [--sets 400] [--quick] [--out DIR] [--report]

A full run takes a minute; --quick takes some seconds. Each data set has 1000 samples of a Gaussian distribution, or of
labels, whose information has a closed form. Reported are the mean of the estimates, their standard deviation over the
data sets, the mean of their standard errors, and the share of data sets whose interval contains the true value, or,
without the bias, the mean of the estimates. Writes coverage.json and coverage.md.
"""

import math

import numpy as np
import torch
from reporting import finish, make_parser, markdown_table, parse

import echo_ext

N = 1000


def pair(rng):
    """Two variables of correlation 0.6."""
    x, e = rng.standard_normal((2, N))
    return x, 0.6 * x + 0.8 * e


def given_third(rng):
    """Two variables that add to their common cause parts of correlation 0.6."""
    z = rng.standard_normal(N)
    x, y = pair(rng)
    return x + z, y + z, z


def series(rng):
    """White noise that drives an autoregressive series."""
    source, noise = rng.standard_normal((2, N + 100))
    target = np.zeros(N + 100)
    for t in range(1, N + 100):
        target[t] = 0.5 * target[t - 1] + 0.7 * source[t - 1] + noise[t]
    return source[100:], target[100:]


def three(rng):
    """Three columns of which one contains the sum of the others."""
    x = rng.standard_normal((N, 3))
    x[:, 2] += x[:, 0] + x[:, 1]
    return (x,)


def plane(rng):
    """Two independent columns."""
    return (rng.standard_normal((N, 2)),)


def labeled(rng):
    """A uniform variable that overlaps by half between two labels."""
    label = rng.integers(0, 2, N)
    return rng.random(N) + 0.5 * label, label


GAUSSIAN = -0.5 * math.log(1 - 0.6**2)
CASES = {  # the estimator, its variables, its options and the true value
    "mutual_information": (echo_ext.mutual_information, pair, {}, GAUSSIAN),
    "mutual_information, independent": (
        echo_ext.mutual_information,
        lambda rng: tuple(rng.standard_normal((2, N))),
        {},
        0.0,
    ),
    "conditional_mutual_information": (echo_ext.conditional_mutual_information, given_third, {}, GAUSSIAN),
    "transfer_entropy": (echo_ext.transfer_entropy, series, {}, 0.5 * math.log(1 + 0.7**2)),
    "total_correlation": (echo_ext.total_correlation, three, {}, 0.5 * math.log(3)),
    "entropy": (echo_ext.entropy, plane, {}, math.log(2 * math.pi * math.e)),
    "mutual_information_discrete": (echo_ext.mutual_information_discrete, labeled, {}, 0.5 * math.log(2)),
}


def measure(options):
    torch.manual_seed(0)
    cases = []
    for name, (estimator, draw, keywords, truth) in CASES.items():
        rngs = [np.random.default_rng(seed) for seed in range(options.sets)]
        results = [echo_ext.with_standard_error(estimator, *draw(rng), seed=0, **keywords) for rng in rngs]
        estimates, errors = np.array(results).T
        apart = np.abs(estimates - truth), np.abs(estimates - estimates.mean())
        coverage, unbiased = (float(np.mean(each <= 1.96 * errors)) for each in apart)
        cases.append(
            {
                "case": name,
                "truth": truth,
                "mean": estimates.mean(),
                "std": estimates.std(ddof=1),
                "standard_error": errors.mean(),
                "coverage": coverage,
                "coverage_unbiased": unbiased,
            }
        )
    return {"threads": 1, "samples": N, "sets": options.sets, "cases": cases}


def table(result):
    heads = ("estimator", "true", "mean", "standard deviation", "mean standard error", "coverage", "without the bias")
    numbers = ("truth", "mean", "std", "standard_error")
    rows = [
        (
            case["case"],
            *(f"{case[number]:.3f}" for number in numbers),
            *(f"{case[share]:.1%}" for share in ("coverage", "coverage_unbiased")),
        )
        for case in result["cases"]
    ]
    return "\n".join(markdown_table(heads, rows)) + "\n"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--sets", type=int, default=400, help="number of data sets")
    options = parse(parser)
    options.sets = 3 if options.quick else options.sets
    finish("coverage", options, measure, table)


if __name__ == "__main__":
    main()
