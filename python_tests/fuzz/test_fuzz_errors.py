"""Calls with one invalid argument each: every error is one line that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import fuzzing
import hypothesis.strategies as st
import numpy as np
import torch

import echo_ext

N = 12  # number of samples of the calls below


@dataclass(frozen=True)
class Case:
    numbers: int  # NumPy's seed
    call: str
    argument: str
    mistake: str
    as_tensor: bool


# ---- Mistakes by kind of argument: functions from the valid value to an invalid one ----------------------------------

NOT_COUNTS = {
    "zero": lambda _: 0,
    "negative": lambda _: -1,
    "fraction": lambda _: 2.5,
    "whole float": lambda _: 3.0,
    "text": lambda _: "3",
    "bool": lambda _: True,
    "huge": lambda _: 2**70,
    "nan": lambda _: float("nan"),
    "list of text": lambda _: ["a"],
    "dictionary": lambda _: {},
}
NOT_SMALL_COUNTS = {**NOT_COUNTS, "too large": lambda _: N + 1}
NOT_WINDOWS = {name: make for name, make in NOT_COUNTS.items() if name != "zero"} | {"too large": lambda _: N}
NOT_WORDS = {
    "unknown": lambda _: "unknown",
    "empty": lambda _: "",
    "none": lambda _: None,
    "number": lambda _: 3,
    "list": lambda _: [],
    "dictionary": lambda _: {},
}
NOT_SEEDS = {
    "beyond 64 bits": lambda _: 2**64,
    "fraction": lambda _: 1.5,
    "text": lambda _: "1",
    "list": lambda _: [1],
}


def _with_value(value):
    def make(right):
        wrong = right.clone() if isinstance(right, torch.Tensor) else np.array(right)
        wrong.reshape(-1)[wrong.size // 2 if isinstance(wrong, np.ndarray) else wrong.numel() // 2] = value
        return wrong

    return make


NOT_SAMPLES = {
    "nan": _with_value(float("nan")),
    "infinity": _with_value(float("-inf")),
    "text": lambda right: np.full(right.shape, "a"),
    "objects": lambda right: np.full(right.shape, None),
    "none": lambda _: None,
    "complex": lambda right: right + 1j,
    "no columns": lambda right: right[..., :0],
    "number": lambda right: right.reshape(-1)[0] if isinstance(right, torch.Tensor) else 1.0,
    "no rows": lambda right: right[:0],
    "ragged": lambda _: [[1.0], [1.0, 2.0]],
    "dictionary": lambda _: {},
}
# Inconsistent with another argument that holds samples.
NOT_ALIKE = {
    "fewer rows": lambda right: right[:-1],
    "half precision": lambda right: right.half() if isinstance(right, torch.Tensor) else right.astype(np.float16),
    "array and tensor": lambda right: right.numpy() if isinstance(right, torch.Tensor) else torch.from_numpy(right),
    "batch": lambda right: right[:2],
}
NOT_SIGNALS = {
    "array": lambda right: right.numpy(),
    "list": lambda right: right.tolist(),
    "none": lambda _: None,
    "integers": lambda right: right.long(),
    "complex": lambda right: right + 1j,
    "number": lambda right: right.reshape(-1)[0],
    "fewer rows": lambda right: right[:-1],
    "fewer columns": lambda right: right[:, :-1],
    "another dtype": lambda right: right.half(),
}
NOT_BANKS = {
    "tensor": lambda right: right[0],
    "one": lambda right: right[:1],
    "three": lambda right: (*right, right[0]),
    "empty": lambda right: (right[0][:0], right[1][:0]),
    "of none": lambda right: (right[0], None),
    "columns": lambda right: (right[0][:, :-1], right[1][:, :-1]),
    "another dtype": lambda right: (right[0].half(), right[1].half()),
    "lengths": lambda right: (right[0], right[1][:-1]),
    "number": lambda _: 3,
}
NOT_LABELS = {
    "fractions": lambda right: right + 0.5,
    "complex": lambda right: right + 1j,
    "too few": lambda right: right[:-1],
    "all different": lambda right: np.arange(len(right)),
    "none": lambda _: None,
    "number": lambda _: 1,
}
NOT_TRIALS = {
    "too few": lambda _: [0] * (N - 1),
    "two columns": lambda _: np.zeros((N, 2)),
    "missing": lambda _: [None] + [0] * (N - 1),
    "dictionaries": lambda _: [{}] * N,
    "number": lambda _: 3,
    "dictionary": lambda _: {},
}
NOT_LAGS = {
    "none": lambda _: None,
    "number": lambda _: 3,
    "empty": lambda _: [],
    "text": lambda _: "3",
    "fractions": lambda _: [1.0],
    "bools": lambda _: [True],
    "too large": lambda _: [0, N],
    "too negative": lambda _: [-(2**70)],
    "nested": lambda _: [[1], [1, 2]],
    "matrix": lambda _: np.zeros((2, 2), int),
    "dictionary": lambda _: {},
}
NOT_RADII = {
    "nan": lambda _: float("nan"),
    "text": lambda _: "3",
    "too few": lambda _: [0.5] * (N - 1),
    "none": lambda _: None,
    "complex": lambda _: 1j,
    "dictionary": lambda _: {},
}
NOT_TRANSFORMS = {name: make for name, make in NOT_WORDS.items() if name != "none"}
NOT_GROUPS = {
    "one": lambda _: [[0, 1, 2]],
    "overlap": lambda _: [[0], [0, 1]],
    "beyond": lambda _: [[0], [3]],
    "empty": lambda _: [[0], []],
    "number": lambda _: 3,
    "text": lambda _: "ab",
    "fractions": lambda _: [[0.5], [1]],
}
NOT_SIZES = {
    "empty": lambda _: [],
    "number": lambda _: 3,
    "too large": lambda _: [N + 1],
    "zero": lambda _: [N, 0],
    "fraction": lambda _: [6.5],
    "text": lambda _: "12",
    "list of text": lambda _: ["12"],
    "too small for k": lambda _: [2, N],
}


# ---- Valid calls -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    function: Callable
    samples: tuple[str, ...]  # arguments that hold samples, which must be consistent
    others: dict  # argument: (valid value, mistakes)


def _options(**others):
    return {
        "k": (3, NOT_SMALL_COUNTS),
        "exclude_within": (1, NOT_WINDOWS),
        "unit": ("nats", NOT_WORDS),
        "nan_policy": ("raise", NOT_WORDS),
        "transform": (None, NOT_TRANSFORMS),
        **others,
    }


SIGNALS = {"f": NOT_SIGNALS, "s": NOT_SIGNALS}
NOISE = {
    "num_terms": (3, NOT_SMALL_COUNTS),
    "sampling": ("ring", NOT_WORDS),
    "seed": (1, NOT_SEEDS),
}
METHOD = {"method": ("ksg2", NOT_WORDS)}
TRIALS = {"groups": (None, NOT_TRIALS)}
CALLS = {
    "mutual_information": Call(
        echo_ext.mutual_information, ("x", "y"), _options(**METHOD, **TRIALS, boundary_width=(3, NOT_COUNTS))
    ),
    "conditional_mutual_information": Call(
        echo_ext.conditional_mutual_information, ("x", "y", "z"), _options(**METHOD, **TRIALS)
    ),
    "total_correlation": Call(echo_ext.total_correlation, ("x",), _options(**METHOD, groups=([[0], [1]], NOT_GROUPS))),
    "entropy": Call(
        echo_ext.entropy, ("x",), _options(**TRIALS, method=("knn", NOT_WORDS), metric=("euclidean", NOT_WORDS))
    ),
    "mutual_information_discrete": Call(
        echo_ext.mutual_information_discrete,
        ("x",),
        _options(labels=(np.repeat([0, 1], N // 2), NOT_LABELS), given=(np.zeros(N), NOT_LABELS)),
    ),
    "transfer_entropy": Call(
        echo_ext.transfer_entropy,
        ("source", "target"),
        _options(**METHOD, **TRIALS, history=(1, NOT_COUNTS), source_history=(1, NOT_COUNTS), lag=(1, NOT_COUNTS)),
    ),
    "conditional transfer_entropy": Call(
        echo_ext.transfer_entropy,
        ("source", "target", "given"),
        _options(**METHOD, **TRIALS, given_history=(1, NOT_COUNTS)),
    ),
    "delayed_mutual_information": Call(
        echo_ext.delayed_mutual_information, ("x", "y"), _options(**METHOD, **TRIALS, lags=([-1, 0, 1], NOT_LAGS))
    ),
    "mutual_information_matrix": Call(
        echo_ext.mutual_information_matrix,
        ("x", "y", "given"),
        _options(**METHOD, **TRIALS, n_resamples=(2, NOT_COUNTS), seed=(1, NOT_SEEDS)),
    ),
    "knn": Call(
        echo_ext.knn,
        ("points",),
        {"k": (3, NOT_SMALL_COUNTS), "metric": ("euclidean", NOT_WORDS), "exclude_within": (1, NOT_WINDOWS)},
    ),
    "count_within": Call(
        echo_ext.count_within,
        ("points",),
        {
            "radii": (0.5, NOT_RADII),
            "metric": ("euclidean", NOT_WORDS),
            "exclude_within": (
                1,
                {name: make for name, make in NOT_WINDOWS.items() if name not in ("huge", "too large")},
            ),
        },
    ),
    "independence_test": Call(
        echo_ext.independence_test,
        ("x", "y", "z"),
        _options(
            **METHOD,
            **TRIALS,
            k=(3, NOT_SMALL_COUNTS | {"sequence": lambda _: [3, 4]}),
            n_resamples=(3, NOT_COUNTS),
            surrogate=("local", NOT_WORDS),
            null=("empirical", NOT_WORDS),
            shuffle_neighbors=(4, NOT_SMALL_COUNTS),
        ),
    ),
    "with_standard_error": Call(
        lambda x, y, **options: echo_ext.with_standard_error(echo_ext.mutual_information, x, y, **options),
        ("x", "y"),
        _options(
            **METHOD,
            **TRIALS,
            k=(1, NOT_SMALL_COUNTS | {"sequence": lambda _: [1, 2]}),
            parts=(2, NOT_SMALL_COUNTS),
            repeats=(2, NOT_COUNTS),
        ),
    ),
    "mutual_information_convergence": Call(
        echo_ext.mutual_information_convergence,
        ("x", "y"),
        _options(**METHOD, sizes=([N], NOT_SIZES), repeats=(2, NOT_COUNTS), seed=(1, NOT_SEEDS)),
    ),
    "echo_sample": Call(echo_ext.echo_sample, (), NOISE),
    "echo_sample from a bank": Call(echo_ext.echo_sample, (), {**NOISE, "bank": (None, NOT_BANKS)}),
    "echo_noise": Call(echo_ext.echo_noise, (), {**NOISE, "bank": (None, NOT_BANKS), "size": (5, NOT_COUNTS)}),
    "echo_indices": Call(echo_ext.echo_indices, (), {**NOISE, "batch_size": (N, NOT_COUNTS)}),
    "echo_sample_matrix": Call(echo_ext.echo_sample_matrix, (), {"seed": (1, NOT_SEEDS)}),
}
# Mistakes that are valid for these arguments, such as a huge number of repeats.
RIGHT = {
    ("independence_test", "n_resamples", "huge"),
    ("independence_test", "z", "none"),
    ("independence_test", "surrogate", "none"),
    ("conditional transfer_entropy", "given", "none"),
    ("with_standard_error", "repeats", "huge"),
    ("mutual_information_convergence", "repeats", "huge"),
    ("mutual_information", "boundary_width", "huge"),
    ("mutual_information_matrix", "y", "none"),
    ("mutual_information_matrix", "given", "none"),
    ("mutual_information_matrix", "n_resamples", "zero"),
    ("mutual_information_matrix", "n_resamples", "huge"),
    ("count_within", "points", "no rows"),
    ("mutual_information_discrete", "given", "none"),
}


def mistakes_of(name):
    call = CALLS[name]
    found = [(argument, mistake) for argument, (_, mistakes) in call.others.items() for mistake in mistakes]
    for argument in call.samples:
        kinds = NOT_SAMPLES | (NOT_ALIKE if len(call.samples) > 1 else {})
        found += [(argument, mistake) for mistake in kinds]
    if name.startswith("echo_") and name != "echo_indices":
        second = "S" if name == "echo_sample_matrix" else "s"
        found += [(argument, mistake) for argument in ("f", second) for mistake in NOT_SIGNALS]
    return [(argument, mistake) for argument, mistake in found if (name, argument, mistake) not in RIGHT]


cases = st.sampled_from(
    [(name, argument, mistake) for name in CALLS for argument, mistake in mistakes_of(name)]
).flatmap(
    lambda one: st.builds(
        Case,
        numbers=st.integers(0, 2**32),
        call=st.just(one[0]),
        argument=st.just(one[1]),
        mistake=st.just(one[2]),
        as_tensor=st.booleans(),
    )
)


def right_arguments(case):
    rng = np.random.default_rng(case.numbers)
    call = CALLS[case.call]
    arguments = {argument: right for argument, (right, _) in call.others.items()}
    for argument in call.samples:
        values = rng.standard_normal((3, N, 3) if case.mistake == "batch" else (N, 3))
        arguments[argument] = torch.from_numpy(values) if case.as_tensor else values
    if case.call.startswith("echo_") and case.call != "echo_indices":
        arguments["f"] = torch.from_numpy(rng.uniform(-0.5, 0.5, (N, 3)))
        if case.call == "echo_sample_matrix":
            arguments["S"] = torch.from_numpy(rng.uniform(-0.1, 0.1, (N, 3, 3)))
        else:
            arguments["s"] = arguments["f"].flip(0)
    if "bank" in arguments:
        arguments["bank"] = (torch.randn(N, 3).double(), torch.rand(N, 3).double())
    return arguments


def check(case):
    call = CALLS[case.call]
    arguments = right_arguments(case)
    if case.argument in call.others:
        mistakes = call.others[case.argument][1]
    else:
        mistakes = NOT_SAMPLES | NOT_ALIKE if case.argument in call.samples else NOT_SIGNALS
    arguments[case.argument] = mistakes[case.mistake](arguments[case.argument])
    try:
        call.function(**arguments)
    except (TypeError, ValueError) as error:
        text = str(error)
        assert "\n" not in text.strip(), text
        assert _names(case, call, text), f"the error does not name {case.argument}: {text}"
        return 1
    raise AssertionError(f"{case.argument} with the mistake {case.mistake!r} was accepted")


def _names(case, call, text):
    is_of_pair = case.argument in ("f", "s", "S", *call.samples)
    names = [*call.samples, "f", "s", "S"] if is_of_pair else [case.argument]
    if case.mistake == "no rows":
        names.append("k")  # which is then too large
    if case.argument == "radii":
        names.append("points")
    if case.argument in ("batch_size", "bank"):
        names.append("num_terms")  # which then exceeds the number of rows
    return any(re.search(rf"(?<!\w){name}(?!\w)", text) for name in names)


test_short_run, test_long_run = fuzzing.tests_of(__file__)
