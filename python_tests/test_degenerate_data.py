"""Estimators for continuous variables warn of tied samples."""

import warnings

import numpy as np
import pytest
import torch
from knn_cases import fresh

import echo_ext
from echo_ext import DegenerateDataWarning

N = 200


def with_ties(share, k=3, columns=1):
    """Return N samples of which a share of about so much equal k others."""
    x = fresh().standard_normal((N, columns))
    tied = round(share * N)
    x[:tied] = 7.0
    assert tied == 0 or tied > k
    return x


CALLS = {
    "ksg1": lambda x: echo_ext.mutual_information(x, x),
    "ksg2": lambda x: echo_ext.mutual_information(x, x, method="ksg2"),
    "bi-ksg": lambda x: echo_ext.mutual_information(x, x, method="bi-ksg"),
    "conditional": lambda x: echo_ext.conditional_mutual_information(x, x, x),
    "conditional ksg2": lambda x: echo_ext.conditional_mutual_information(x, x, x, method="ksg2"),
    "total": lambda x: echo_ext.total_correlation(np.concatenate([x, x], 1)),
    "entropy": lambda x: echo_ext.entropy(x),
    "error": lambda x: echo_ext.with_standard_error(echo_ext.mutual_information, x, x, seed=0),
    "distributed": lambda x: echo_ext.distributed.mutual_information(x, x),
    "gradient": lambda x: echo_ext.mutual_information(torch.from_numpy(x).requires_grad_(), torch.from_numpy(x)),
    "matrix": lambda x: echo_ext.mutual_information_matrix(x),
}


@pytest.mark.parametrize("call", CALLS)
def test_more_than_five_percent_are_named_at_the_callers_line(call):
    with pytest.warns(
        DegenerateDataWarning, match=r"^8 % of the samples have their k-th neighbor at distance 0; "
    ) as caught:
        CALLS[call](with_ties(0.08))
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_up_to_five_percent_do_not_matter(call, share):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[call](with_ties(share))


@pytest.mark.parametrize("call", ["ksg1", "distributed", "matrix", "total"])
def test_the_warning_says_what_is_for_which_data(call):
    text = (
        r"use method='mixed' or 'miller-madow' for few distinct values \('mixed' too where only some values repeat\), "
        "mutual_information_discrete for labels, and for rounded numbers and large counts add uniform noise as wide "
        "as the grid$"
    )
    with pytest.warns(DegenerateDataWarning, match=text):
        CALLS[call](with_ties(0.08))


def test_noise_is_right_where_methods_for_ties_are_not():
    rng = fresh()
    counts = rng.poisson(100, (2, 2000))  # independent
    with pytest.warns(DegenerateDataWarning, match="rounded numbers and large counts add uniform noise"):
        assert echo_ext.mutual_information(*counts) > 2
    assert echo_ext.mutual_information(*counts, method="mixed") > 0.5
    assert echo_ext.mutual_information(*counts, method="miller-madow") > 0.25
    assert abs(echo_ext.mutual_information(*(counts + rng.uniform(-0.5, 0.5, counts.shape)))) < 0.06


def test_transfer_between_bits_warns():
    source, target = fresh().integers(0, 2, (2, N))
    with pytest.warns(DegenerateDataWarning, match="100 % of the samples"):
        echo_ext.transfer_entropy(source, target)


def test_methods_for_ties_do_not_warn():
    x = with_ties(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        echo_ext.mutual_information(x, x, method="mixed")
        echo_ext.mutual_information_matrix(x, method="mixed")
        echo_ext.knn(x)


def test_discrete_x_next_to_labels_warns():
    rng = fresh()
    answers, labels = rng.integers(1, 6, N), rng.integers(0, 2, N)
    text = "100 % of the samples .* method='mixed' and discrete_y=True, and for rounded numbers .* add uniform noise"
    with pytest.warns(DegenerateDataWarning, match=text):
        assert echo_ext.mutual_information_discrete(answers, labels) > 1  # more than the labels have
    mixed = echo_ext.mutual_information(answers, labels, method="mixed", discrete_y=True)
    assert mixed == pytest.approx(0, abs=0.05)
    x = rng.standard_normal(N)
    x[: N // 25] = 9.0  # 4 %
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        echo_ext.mutual_information_discrete(x, labels)


def test_ranks_of_a_matrix_warn():
    answers = fresh().integers(1, 6, (N, 2))
    with pytest.warns(DegenerateDataWarning, match=r"x: 9\d.* transform='rank' orders equal ones by their rows"):
        echo_ext.mutual_information_matrix(answers, transform="rank")


def test_the_share_is_that_of_the_smallest_k_and_of_the_worst_item():
    x = np.stack([with_ties(0.1), with_ties(0.2)])
    with pytest.warns(DegenerateDataWarning, match=r"up to 20 % of the samples"):
        echo_ext.entropy(x, k=[3, 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        echo_ext.entropy(x, k=50)


def test_a_matrix_warns_once_and_counts_pairs():
    x = fresh().standard_normal((N, 4))
    x[: N // 2, 1:3] = 1.0
    text = r"up to 50 % of the samples .*; so it is for {} of the {} pairs of columns: use method='mixed'"
    with pytest.warns(DegenerateDataWarning, match=text.format(3, 10)) as caught:
        echo_ext.mutual_information_matrix(x)
    assert len(caught) == 1
    with pytest.warns(DegenerateDataWarning, match=text.format(4, 16)):
        echo_ext.mutual_information_matrix(x, x.copy(), k=[3, 4])
    x[0, 0] = np.nan
    with pytest.warns(DegenerateDataWarning, match=r"3 of the 10 pairs"):
        echo_ext.mutual_information_matrix(x, nan_policy="omit")


def test_ranks_of_equal_values_warn():
    x = with_ties(0.5)
    with pytest.warns(DegenerateDataWarning, match=r"^x: 49.* % of the values of a column repeat others") as caught:
        echo_ext.mutual_information(x, fresh().standard_normal(N), transform="rank")
    assert len(caught) == 1
    with pytest.warns(DegenerateDataWarning, match="50 %"):
        echo_ext.mutual_information(x, x, transform="standardize")
