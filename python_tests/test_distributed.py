"""Distributed Echo noise and estimates, compared with a single process on the concatenated rows of all ranks.

Four ranks are started once. Groups of 1 to 4 of them run the checks in distributed_checks.py one after another.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from echo_cases import relative_error, signal_and_scale
from scipy import stats

import echo_ext
from echo_ext import distributed, reference
from echo_ext.distributed._collectives import HEADER_BYTES, Ranks, _describe, _Header, invalid_unless_equal

HERE = Path(__file__).parent
TIMEOUT = 120


def run_world(size, tmp_path, seed):
    """Start the ranks of one world and return their outputs; if one fails, all are stopped."""
    command = [sys.executable, "distributed_checks.py", str(tmp_path / "init"), str(seed), str(size)]
    outputs = [tmp_path / f"rank{rank}.txt" for rank in range(size)]
    processes = []
    for rank, output in enumerate(outputs):
        with output.open("w") as file:
            processes.append(subprocess.Popen([*command, str(rank)], cwd=HERE, stdout=file, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + TIMEOUT
    try:
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    exit_codes = [process.wait() for process in processes]
    outputs_text = [output.read_text() for output in outputs]
    report = "\n".join(f"rank {r} ended with {exit_codes[r]}:\n{outputs_text[r]}" for r in range(size))
    assert not any(exit_codes), report
    return outputs_text


def test_ranks_match_single_process(tmp_path):
    outputs = run_world(4, tmp_path, int(torch.randint(2**31, ())))
    assert all("process group error" in output for output in outputs[:3])


# ---- Single process --------------------------------------------------------------------------------------------------


def test_single_process_matches_ring_sampling():
    """Without torch.distributed, z is that of sampling="ring" up to terms that are negligible here."""
    f, s = signal_and_scale((40, 2, 3), largest_scale=0.4)
    seed = int(torch.randint(2**62, ()))
    assert (
        relative_error(distributed.echo_sample(f, s, seed=seed), echo_ext.echo_sample(f, s, sampling="ring", seed=seed))
        < 1e-12
    )


def test_ring_solves_periodic_recurrence():
    f, s = signal_and_scale((6, 3), largest_scale=0.99)
    z = distributed.echo_sample(f, s, seed=3)
    order = distributed.ring_order([6], 3)
    assert sorted(order.tolist()) == list(range(6))
    assert relative_error(z[order], f[order] + s[order] * z[order.roll(-1)]) < 1e-13
    assert relative_error(z, reference.echo_circle(f, s, order)) < 1e-13


@pytest.mark.parametrize("shape", [(5, 3), (2,), (3, 2, 2)])
def test_ring_gradcheck(shape):
    assert torch.autograd.gradcheck(lambda f, s: distributed.echo_sample(f, s, seed=1), signal_and_scale(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    f, s = (t.detach() for t in signal_and_scale((300, 4), dtype, 0.99))
    expected = distributed.echo_sample(f.float(), s.float(), seed=1).to(dtype)
    assert torch.equal(distributed.echo_sample(f, s, seed=1), expected)


def test_ring_output_distribution_is_normal():
    """For standard normal f and constant s, z is normal with variance 1 / (1 - s**2)."""
    f = torch.randn(20_000, 1, dtype=torch.float64)
    z = distributed.echo_sample(f, torch.full_like(f, 0.8)).squeeze(1)
    far_apart = z[torch.randperm(len(z))[:500]]  # neighbors on the ring are dependent
    assert stats.kstest(far_apart.numpy(), stats.norm(scale=1 / (1 - 0.64) ** 0.5).cdf).pvalue > 1e-6


def test_header_round_trip():
    header = _Header(2, 12, 34, "k=3\nmethod='ksg1'")
    assert len(header.encode()) == HEADER_BYTES
    assert _Header.decode(header.encode()) == header
    assert _Header.decode(bytes(HEADER_BYTES)) is None


def test_longest_description_fits_in_header():
    """Every value that mutual_information describes in its header has its maximum length."""
    longest = {f"the leading dimensions of {name}": tuple(range(10**6, 10**6 + 60)) for name in "xy"}
    longest |= {"k": tuple(range(10**4)), "exclude_within": 10**300, "the number of columns of x": 2**62}
    longest |= {"the function called": "mutual_information", "the device type of x and y": "cuda"}
    longest |= {"the number of columns of y": 2**62, "the dtype of x and y": torch.float64, "method": "'bi-ksg'"}
    longest |= {"local": False, "unit": "'nats'"}
    _Header(0, 2**62, 2**62, _describe(longest)).encode()


def test_long_values_are_distinguished():
    ks = [3] * 400
    assert _describe({"k": ks}) == _describe({"k": list(ks)})
    assert _describe({"k": ks}) != _describe({"k": [*ks[:-1], 5]})


def test_disagreeing_headers_give_nan():
    numbers = torch.randn(3, 4)
    headers = torch.zeros(3, 8, dtype=torch.uint8)
    assert torch.equal(invalid_unless_equal(headers, numbers), numbers)
    headers[2, 7] = 1
    assert invalid_unless_equal(headers, numbers).isnan().all()


@pytest.mark.parametrize(
    ("f", "s", "options", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(1, 2), {}, "f must have at least 2 rows on all ranks together, got 1"),
        (torch.zeros(3, 2), torch.zeros(3, 1), {}, "f and s must have the same shape"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"num_terms": 2}, "num_terms must be None for sampling='ring'"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"sampling": "circle"}, "sampling must be one of"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            {"sampling": "permutation", "num_terms": 3},
            "at most 2, the number of other rows",
        ),
    ],
)
def test_invalid_inputs_raise(f, s, options, message):
    with pytest.raises(ValueError, match=message):
        distributed.echo_sample(f, s, **options)


def test_channel_rejects_unknown_sync():
    with pytest.raises(ValueError, match="sync must be one of False, True, 'gather', got 'ring'"):
        echo_ext.EchoChannel(sync="ring")


def test_channel_ignores_sync_in_single_process():
    f_raw, s_raw = torch.randn(30, 4), torch.randn(30, 4)
    outputs = []
    for sync in (False, True, "gather"):
        torch.manual_seed(1)
        outputs.append(echo_ext.EchoChannel(20, sync=sync)(f_raw, s_raw).z)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")
@pytest.mark.parametrize("method", ["ksg1", "ksg2", "bi-ksg", "mixed"])
@pytest.mark.parametrize("exclude_within", [0, 3])
def test_single_process_estimate_matches_local(method, exclude_within):
    x = torch.randn(200, 2, dtype=torch.float64)
    y = x[:, :1] + torch.randn(200, 1, dtype=torch.float64)
    x, y = (torch.cat([t, t[:20]]) for t in (x.round(decimals=1), y.round(decimals=1)))  # with ties
    options = {"k": (1, 4), "method": method, "exclude_within": exclude_within}
    actual = distributed.mutual_information(x, y, **options)
    assert torch.allclose(actual, echo_ext.mutual_information(x, y, **options), rtol=0, atol=1e-12)


def test_single_rank_all_gather():
    ranks = Ranks(None)
    assert (ranks.rank, ranks.size) == (0, 1)
    assert torch.equal(ranks.all_gather(torch.ones(2)), torch.ones(1, 2))
