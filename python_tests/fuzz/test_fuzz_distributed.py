"""Random distributed calls on two and three ranks, compared with their definitions, and disagreeing ranks."""

import re
from dataclasses import dataclass

import distributed_definitions as definitions
import fuzzing
import numpy as np
import torch
from distributed_ranks import ranks
from hypothesis import strategies as st

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative to the largest value. Half-precision gradients are rounded on each rank before they are summed.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 6e-2, "float16": 8e-3}
METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed", *definitions.CELL_METHODS)
ROW_SHAPES = ((), (1,), (3,), (2, 2), (17,), (0,), (400,), (1000,))
SEEDS = st.integers(-(2**63), 2**63 - 1)

# Values that an option may take on the one rank that disagrees.
ECHO_DISAGREEMENTS = {
    "sampling": ("ring", "permutation", "replacement", "circle", None),
    "num_terms": (None, 0, 1, 2, 3, 500, 2.0, True),
    "seed": (2**63, "1", 1.5),
}
INFORMATION_DISAGREEMENTS = {
    "k": (1, 2, 3, (3,), (1, 2), (2, 1), 0, -1, 3.0, 5000, 10**30, (), "3", None),
    "method": (*METHODS, "ksg3", None),
    "exclude_within": (0, 1, 2, -1, 0.5, 10**30),
    "unit": ("nats", "bits", "dits"),
    "local": (False, True),
}


@dataclass(frozen=True)
class Case:
    """Calls that run one after another on the same processes, and the seed of their values."""

    numbers: int
    calls: list


@st.composite
def _echo_settings(draw):
    world = draw(st.sampled_from([2, 3]))
    sizes = draw(st.lists(st.sampled_from([4, 1, 0, 2, 3, 5, 9, 30]), min_size=world, max_size=world))
    sampling = draw(st.sampled_from(["ring", "permutation", "replacement"]))
    return {
        "function": "echo_sample",
        "sizes": sizes,
        "shape": draw(st.sampled_from(ROW_SHAPES)),
        "dtype": draw(st.sampled_from(list(DTYPES))),
        "sampling": sampling,
        "num_terms": None if sampling == "ring" else draw(st.sampled_from([None, 1, 2, 3, 5])),
        "seeds": draw(st.lists(SEEDS, min_size=world, max_size=world) | SEEDS.map(lambda seed: [seed] * world)),
        "gradient": draw(st.sampled_from([(True, True), (False, False), (True, False), (False, True)])),
        "grad_mode": draw(st.sampled_from([True, True, False])),
        "largest_scale": draw(st.sampled_from([0.9, 0.0, 0.5, 0.98])),
    }


@st.composite
def _information_settings(draw):
    world = draw(st.sampled_from([2, 3]))
    return {
        "function": "mutual_information",
        "sizes": draw(st.lists(st.sampled_from([6, 1, 0, 4, 12, 20]), min_size=world, max_size=world)),
        "columns": draw(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))),
        "batches": draw(st.sampled_from([((), ()), ((2,), (2,)), ((2,), ()), ((2, 1), (2,)), ((0,), ())])),
        "dtype": draw(st.sampled_from(["float64", "float32"])),
        "kind": draw(st.sampled_from(["lattice", "ties", "constant"])),
        "k": draw(st.sampled_from([3, 1, 2, (1,), (1, 3), (4, 2, 2)])),
        "method": draw(st.sampled_from(METHODS)),
        "exclude_within": draw(st.sampled_from([0, 0, 1, 3])),
        "unit": draw(st.sampled_from(["nats", "bits"])),
        "local": draw(st.booleans()),
        "tensors": draw(st.lists(st.booleans(), min_size=world, max_size=world)),
        "gradient": draw(st.lists(st.booleans(), min_size=world, max_size=world)),
    }


@st.composite
def _disagreement_settings(draw):
    """Draw a valid call, the rank that disagrees and how it disagrees."""
    case = draw(_echo_settings() | _information_settings())
    rank = draw(st.integers(0, len(case["sizes"]) - 1))
    table = ECHO_DISAGREEMENTS if case["function"] == "echo_sample" else INFORMATION_DISAGREEMENTS
    name = draw(st.sampled_from([*table, "dtype", "shape", "function", "gradient", "grad_mode", "partner"]))
    value = draw(st.sampled_from(table[name])) if name in table else None
    return {**case, "differs": (rank, name, value)}


_settings = _echo_settings() | _information_settings() | _disagreement_settings()
cases = st.builds(Case, numbers=st.integers(0, 2**32), calls=st.lists(_settings, min_size=1, max_size=3))


def check(case):
    """Run the calls on all ranks and compare them with their definitions."""
    calls = [{**settings, "numbers": case.numbers + i} for i, settings in enumerate(case.calls)]
    prepared = [found for found in map(prepare, calls) if found is not None]
    for (_, compare), answers in zip(prepared, ranks().call([requests for requests, _ in prepared]), strict=True):
        compare(answers)
    return len(prepared)


def prepare(call):
    """Return the request of each rank and a function that checks the answers, or None if there is nothing to test."""
    requests, data = REQUESTS[call["function"]](call)
    if "differs" in call:
        return disagreement(call, requests)
    return requests, lambda answers: CHECKS[call["function"]](call, answers, data)


# ---- Echo noise ------------------------------------------------------------------------------------------------------


def echo_requests(case):
    """Return the request of each rank and the arrays of all ranks."""
    rng = np.random.default_rng(case["numbers"])
    shape, dtype = (sum(case["sizes"]), *case["shape"]), DTYPES[case["dtype"]]
    f, weights = np.tanh(rng.standard_normal(shape)), rng.standard_normal(shape)
    s = case["largest_scale"] * rng.uniform(-1, 1, shape)
    f, s, weights = (torch.from_numpy(np.asarray(v)).to(dtype).double().numpy() for v in (f, s, weights))
    requests, first = [], 0
    for size, seed in zip(case["sizes"], case["seeds"], strict=True):
        own = slice(first, first + size)
        first += size
        request = {
            "function": "echo_sample",
            "arrays": [f[own], s[own]],
            "weights": weights[own],
            "dtype": dtype,
            "gradient": case["gradient"],
            "grad_mode": case["grad_mode"],
            "options": {"seed": seed, "sampling": case["sampling"], "num_terms": case["num_terms"]},
        }
        requests.append(request)
    return requests, (f, s, weights)


def check_echo(case, answers, numbers):
    f, s, weights = numbers
    total, sizes = sum(case["sizes"]), case["sizes"]
    if total < 2:
        return assert_same_error(answers, "ValueError", f"at least 2 rows.*got {total}")
    if case["num_terms"] is not None and case["num_terms"] >= total:
        return assert_same_error(
            answers, "ValueError", f"num_terms must be at most {total - 1}.*got {case['num_terms']}"
        )
    if case["sampling"] == "ring":
        expected = definitions.ring(f, s, definitions.circle(sizes, case["seeds"]), weights)
    else:
        expected = definitions.gathered(f, s, sizes, case["seeds"], case["sampling"], case["num_terms"], weights)
    wanted = dict(zip("zfs", expected, strict=True))
    starts = np.cumsum([0, *sizes])
    for rank, answer in enumerate(answers):
        assert isinstance(answer, dict), answers
        names = {"z"} | (
            {name for name, is_set in zip("fs", case["gradient"], strict=True) if is_set and case["grad_mode"]}
        )
        assert set(answer) == names, (rank, answer)
        for name, actual in answer.items():
            own = wanted[name][starts[rank] : starts[rank + 1]]
            largest = max(1.0, np.abs(wanted[name]).max(initial=0))
            assert actual.shape == own.shape, (rank, name)
            error = np.abs(actual - own).max(initial=0) / largest
            assert error <= TOLERANCE[case["dtype"]], (rank, name, error)


# ---- Mutual information ----------------------------------------------------------------------------------------------


def information_requests(case):
    rng = np.random.default_rng(case["numbers"])
    total = sum(case["sizes"])
    x, y = (
        rng.standard_normal((*batch, total, columns))
        for batch, columns in zip(case["batches"], case["columns"], strict=True)
    )
    # Multiples of a step, so that distances and their squares are exact in both dtypes.
    step = {"lattice": 1 / 64, "ties": 1.0, "constant": 100.0}[case["kind"]]
    x, y = (np.round(v / step) * step for v in (x, y))
    requests, first = [], 0
    for rank, size in enumerate(case["sizes"]):
        own = slice(first, first + size)
        first += size
        request = {
            "function": "mutual_information",
            "arrays": [x[..., own, :], y[..., own, :]],
            "dtype": case["dtype"],
            "tensors": case["tensors"][rank],
            "gradient": case["gradient"][rank],
            "options": {name: case[name] for name in ("k", "method", "exclude_within", "unit", "local")},
        }
        requests.append(request)
    return requests, (x, y)


def check_information(case, answers, variables):
    total, k, window = sum(case["sizes"]), case["k"], case["exclude_within"]
    has_neighbors = case["method"] not in definitions.CELL_METHODS
    if total == 0 and not has_neighbors:
        return assert_same_error(answers, "ValueError", "at least 1 sample, got 0$")
    if has_neighbors and max(np.atleast_1d(k)) > max(total - 1 - 2 * window, 0):
        return assert_same_error(
            answers, "ValueError", f"of {total}$" if window == 0 else f"some of the {total} samples"
        )
    x, y = (v.astype(case["dtype"]) for v in variables)
    settings = {name: case[name] for name in ("k", "method", "exclude_within", "unit")}
    values = definitions.mutual_information(x, y, **settings)
    values = values[0] if np.ndim(k) == 0 else values
    starts = np.cumsum([0, *case["sizes"]])
    for rank, answer in enumerate(answers):
        assert isinstance(answer, dict), answers
        expected = values[..., starts[rank] : starts[rank + 1]] if case["local"] else values.mean(-1)
        actual = answer["values"]
        assert actual.shape == expected.shape, (rank, actual.shape, expected.shape)
        tolerance = 1e-9 if case["dtype"] == "float64" else 1e-5
        assert np.allclose(actual, expected, rtol=tolerance, atol=tolerance), (rank, actual, expected)


# ---- Disagreement between ranks --------------------------------------------------------------------------------------


def disagreement(case, requests):
    """Change the call on one rank; all ranks must raise the same error, which names the argument."""
    rank, name, value = case["differs"]
    odd = dict(requests[rank])
    requests[rank], named = odd, name
    is_echo = case["function"] == "echo_sample"
    if name in odd["options"]:
        if value == odd["options"][name] and type(value) is type(odd["options"][name]):
            return None
        odd["options"] = {**odd["options"], name: value}
    elif name == "dtype":
        others = [dtype for dtype in (DTYPES.values() if is_echo else ("float64", "float32")) if dtype != odd["dtype"]]
        odd["dtype"] = others[case["numbers"] % len(others)]
    elif name == "shape":
        odd["arrays"] = [array[..., None] if is_echo else np.concatenate([array, array], -1) for array in odd["arrays"]]
        odd["weights"] = odd["weights"][..., None] if is_echo else None
        named = "the shape of f's rows" if is_echo else "the number of columns of x"
    elif name == "partner":  # the two arrays have different lengths
        first, second = odd["arrays"]
        axis = 0 if is_echo else -2
        if second.shape[axis] == 0 or second.size == 0:
            return None  # there is nothing to repeat
        odd["arrays"] = [first, np.concatenate([second, second], axis)]
        named = "must have the same"
    elif name == "function":
        odd.clear()
        odd |= OTHER[case["function"]]
        named = "the function called"
    elif is_echo and name in ("gradient", "grad_mode"):
        before = any(odd["gradient"]) and odd["grad_mode"]
        odd["gradient"], odd["grad_mode"] = ((False, False), True) if before else ((True, True), True)
        named = "whether a gradient is needed"
    else:
        return None  # ranks need not agree on gradients of an estimate
    kind = None
    if is_echo and name == "seed":
        kind, named = "ValueError" if isinstance(value, int) else "TypeError", "seed must"
    return requests, lambda answers: assert_same_error(answers, kind, named)


OTHER = {
    "echo_sample": {
        "function": "mutual_information",
        "arrays": [np.arange(5.0)[:, None], np.arange(5.0)[:, None]],
        "dtype": "float64",
        "tensors": True,
        "gradient": False,
        "options": {},
    },
    "mutual_information": {
        "function": "echo_sample",
        "arrays": [np.ones((3, 2)), np.full((3, 2), 0.5)],
        "weights": np.ones((3, 2)),
        "dtype": torch.float64,
        "gradient": (True, True),
        "grad_mode": True,
        "options": {"sampling": "permutation"},
    },
}


def assert_same_error(answers, kind, pattern):
    """All ranks raise the same error, or one raises it and the others name that rank and quote its reason."""
    assert all(isinstance(answer, tuple) for answer in answers), answers
    kinds, messages = zip(*answers, strict=True)
    assert len(set(kinds)) == 1, answers
    assert kinds[0] == kind or (kind is None and kinds[0] in ("ValueError", "TypeError")), answers
    reasons = {message.partition(" rejected the call: ")[2] or message for message in messages}
    assert len(reasons) == 1, answers
    (reason,) = reasons
    assert re.search(pattern, reason), (pattern, reason)


REQUESTS = {"echo_sample": echo_requests, "mutual_information": information_requests}
CHECKS = {"echo_sample": check_echo, "mutual_information": check_information}


test_short_run, test_long_run = fuzzing.tests_of(__file__)
