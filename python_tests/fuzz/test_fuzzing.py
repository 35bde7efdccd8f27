"""The fuzzers detect wrong results, crashes and hangs, and report the failing case."""

import fuzzing
import information_definitions
import numpy as np
import pytest
import test_fuzz_errors
import test_fuzz_estimators
import test_fuzz_gradients
import test_fuzz_independence
import test_fuzz_noise
from hypothesis.configuration import set_hypothesis_home_dir

import echo_ext


@pytest.fixture(autouse=True)
def hypothesis_folder(tmp_path):
    set_hypothesis_home_dir(tmp_path)


def off_by_one_neighbor(monkeypatch):
    original = information_definitions.nearest

    def wrong(distance, usable, k):
        found = original(distance, usable, k)
        return np.concatenate([found[:, :1], found[:, :-1]], 1)

    monkeypatch.setattr(information_definitions, "nearest", wrong)


def inclusive_count(monkeypatch):
    original = information_definitions.Sample.count

    def wrong(self, which, radius, inclusive=False, euclidean=False):
        return original(self, which, radius, True, euclidean)

    monkeypatch.setattr(information_definitions.Sample, "count", wrong)


def one_term_fewer(monkeypatch):
    original = echo_ext.echo_sample

    def wrong(f, s, *, num_terms=None, bank=None, **options):
        available = len(f) - 1 if bank is None else len(bank[0])
        return original(f, s, num_terms=max((num_terms or available) - 1, 1), bank=bank, **options)

    monkeypatch.setattr(echo_ext, "echo_sample", wrong)


def p_value_that_may_be_zero(monkeypatch):
    original = echo_ext.independence_test

    def wrong(*variables, n_resamples, **options):
        result = original(*variables, n_resamples=n_resamples, **options)
        return result._replace(pvalue=result.pvalue - 1 / (n_resamples + 1))

    monkeypatch.setattr(echo_ext, "independence_test", wrong)


def error_without_a_name(monkeypatch):
    wrong = test_fuzz_errors.Call(raise_unnamed_error, ("x",), test_fuzz_errors.CALLS["entropy"].others)
    monkeypatch.setitem(test_fuzz_errors.CALLS, "entropy", wrong)


def raise_unnamed_error(**arguments):
    try:
        return echo_ext.entropy(**arguments)
    except ValueError:
        raise ValueError("bad argument") from None


@pytest.mark.parametrize(
    ("group", "mistake"),
    [
        (test_fuzz_noise, one_term_fewer),
        (test_fuzz_gradients, one_term_fewer),
        (test_fuzz_gradients, off_by_one_neighbor),
        (test_fuzz_estimators, off_by_one_neighbor),
        (test_fuzz_estimators, inclusive_count),
        (test_fuzz_independence, p_value_that_may_be_zero),
        (test_fuzz_errors, error_without_a_name),
    ],
)
def test_detects_planted_mistakes(group, mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        fuzzing.run_batch(group, fuzzing.fresh_seed(), examples=1000, shrink=False)


GROUP = """
import ctypes, time
from dataclasses import dataclass
import hypothesis.strategies as st

@dataclass(frozen=True)
class Case:
    numbers: int

cases = st.builds(Case, numbers=st.just(7))

def check(case):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ctypes.string_at(0)", r"crashed with SIGSEGV(?s:.*)ECHO_EXT_FUZZ_SEED=(?s:.*)Case\(numbers=7\)"),
        ("time.sleep(600)", r"did not return(?s:.*)Case\(numbers=7\)"),
        ("raise ValueError('no')", r"found a wrong result(?s:.*)Case\(numbers=7\)(?s:.*)ValueError: no"),
    ],
)
def test_report_names_failing_case(body, message, tmp_path):
    group = tmp_path / "test_fuzz_broken.py"
    group.write_text(GROUP.format(body=body))
    hang_timeout = 2 if "sleep" in body else fuzzing.HANG_TIMEOUT_SECONDS
    with pytest.raises(pytest.fail.Exception, match=message):
        fuzzing.run_group(group, seed=1, isa=fuzzing.instruction_sets()[0], seconds=1, hang_timeout=hang_timeout)
