"""What each method gives for discrete data: the mean and the standard deviation of the estimates over data sets.

    python benchmarks/bench_ties.py [--sets 100] [--quick] [--out DIR] [--report]

A full run takes half a minute; --quick takes some seconds. Each data set has 1000 samples, and k is 3. Writes ties.json
and ties.md.
"""

import numpy as np
from reporting import finish, make_parser, markdown_table, parse
from scipy.stats import poisson

import echo_ext

N = 1000
METHODS = ("ksg1", "ksg2", "mixed", "plug-in", "miller-madow")


def bits(rng):
    """Three independent bits."""
    return rng.integers(0, 2, (3, N))


def answers(rng, columns):
    """Independent answers from 1 to 5."""
    return rng.integers(1, 6, (N, columns))


def repeated_answers(rng):
    """Two answers from 1 to 5, the second of which repeats the first in half of the samples."""
    first, second = answers(rng, 2).T
    return first, np.where(rng.random(N) < 0.5, first, second)


def spikes(rng, rate):
    """Independent counts of spikes."""
    return rng.poisson(rate, (2, N))


def driven_spikes(rng):
    """Counts of spikes, of which the second has a rate of 0.5 plus the first's last count."""
    source = rng.poisson(1.0, N)
    return source, rng.poisson(0.5 + np.concatenate([[1.0], source[:-1]]))


def repeated_information():
    joint = np.full((5, 5), 0.5 / 25) + np.eye(5) * 0.1
    return float(np.sum(joint * np.log(joint * 25)))


def driven_information():
    source, target = np.arange(60)[:, None], np.arange(150)
    joint = poisson.pmf(source, 1.0) * poisson.pmf(target, 0.5 + source)
    ratio = joint / (joint.sum(0) * joint.sum(1, keepdims=True))
    return float(np.sum(joint[joint > 0] * np.log(ratio[joint > 0])))


CASES = {  # name: the true value, and the estimate from a generator by a method
    "mutual information of two answers": (
        0.0,
        lambda rng, method: echo_ext.mutual_information(*answers(rng, 2).T, method=method),
    ),
    "the same, where half repeat": (
        repeated_information(),
        lambda rng, method: echo_ext.mutual_information(*repeated_answers(rng), method=method),
    ),
    "conditional information of three bits": (
        0.0,
        lambda rng, method: echo_ext.conditional_mutual_information(*bits(rng), method=method),
    ),
    "conditional information of three answers": (
        0.0,
        lambda rng, method: echo_ext.conditional_mutual_information(*answers(rng, 3).T, method=method),
    ),
    "total correlation of three answers": (
        0.0,
        lambda rng, method: echo_ext.total_correlation(answers(rng, 3), method=method),
    ),
    "transfer entropy of Poisson counts, mean 0.2": (
        0.0,
        lambda rng, method: echo_ext.transfer_entropy(*spikes(rng, 0.2), method=method),
    ),
    "transfer entropy of Poisson counts, mean 3": (
        0.0,
        lambda rng, method: echo_ext.transfer_entropy(*spikes(rng, 3.0), method=method),
    ),
    "transfer entropy of Poisson counts that drive others": (
        driven_information(),
        lambda rng, method: echo_ext.transfer_entropy(*driven_spikes(rng), method=method),
    ),
}


def measure(options):
    cases = []
    for name, (truth, estimate) in CASES.items():
        for method in METHODS:
            values = [estimate(np.random.default_rng(seed), method) for seed in range(options.sets)]
            cases.append(
                {"case": name, "truth": truth, "method": method, "mean": np.mean(values), "std": np.std(values)}
            )
    return {"threads": 1, "samples": N, "sets": options.sets, "cases": cases}


def table(result):
    found = {(case["case"], case["method"]): case for case in result["cases"]}
    rows = []
    for name in dict.fromkeys(case["case"] for case in result["cases"]):
        truth = found[name, METHODS[0]]["truth"]
        values = (found[name, method] for method in METHODS)
        rows.append((name, f"{truth:.3f}", *(f"{each['mean']:.3f} ± {each['std']:.3f}" for each in values)))
    return "\n".join(markdown_table(["estimate", "true", *METHODS], rows)) + "\n"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--sets", type=int, default=100, help="number of data sets")
    options = parse(parser)
    options.sets = 3 if options.quick else options.sets
    finish("ties", options, measure, table)


if __name__ == "__main__":
    main()
