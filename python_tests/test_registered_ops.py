"""The registered ops, which exported programs call directly, reject what the public functions reject."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from echo_ext import echo_indices, echo_sample, echo_sample_matrix

HERE = Path(__file__).parent
OPS = torch.ops.echo_ext
F = torch.randn(6, 3)
S = torch.rand(6, 3)
MATRICES = 0.2 * torch.rand(6, 3, 3)
SEED = torch.tensor(1)


def echo(**changes):
    arguments = dict(f=F, s=S, bank_f=F, bank_s=S, seed=SEED, rows=6, num_terms=2, sampling=0, exclude_self=True)
    return OPS.echo(*(arguments | changes).values())


def echo_backward(**changes):
    arguments = dict(grad=F, s=S, bank_f=F, bank_s=S, seed=SEED, rows=6, num_terms=2, sampling=0, exclude_self=True)
    return OPS.echo_backward(*(arguments | changes).values())


def indices(**changes):
    arguments = dict(seed=SEED, rows=6, bank_rows=6, num_terms=2, sampling=0, exclude_self=True)
    return OPS.echo_indices(*(arguments | changes).values())


def matrix(**changes):
    return OPS.echo_matrix(*(dict(f=F, s=MATRICES, seed=SEED) | changes).values())


def matrix_backward(**changes):
    return OPS.echo_matrix_backward(*(dict(grad=F, s=MATRICES, z=F, seed=SEED) | changes).values())


def test_valid_arguments_match_public_functions():
    assert torch.equal(echo(), echo_sample(F, S, num_terms=2, seed=1))
    assert torch.equal(indices(), echo_indices(6, num_terms=2, seed=1))
    assert torch.equal(matrix(), echo_sample_matrix(F, MATRICES, seed=1))
    assert echo(rows=0).shape == (0, 3)


INVALID_DRAWS = [
    (dict(rows=7), ValueError, "rows must be at most 6, the number of rows of the bank|f must have 7 rows"),
    (dict(rows=-1), ValueError, "rows must be at least 0"),
    (dict(num_terms=6), ValueError, "num_terms must be at most 5, the number of other rows in the batch, got 6"),
    (dict(num_terms=0), ValueError, "num_terms must be at least 1"),
    (dict(sampling=77), ValueError, "sampling must be between 0 and 2, got 77"),
    (dict(sampling=-1), ValueError, "sampling must be between 0 and 2, got -1"),
    (dict(seed=SEED[None][:0]), ValueError, "seed must be an int64 tensor of one element"),
    (dict(seed=SEED.double()), ValueError, "seed must be an int64 tensor of one element"),
]
INVALID_BANKS = [
    (dict(bank_s=S[:5]), ValueError, "bank_f and bank_s must have the same shape"),
    (dict(bank_s=S.double()), TypeError, "bank_f and bank_s must have the same dtype"),
    (dict(bank_f=F[:0], bank_s=S[:0]), ValueError, "at least 2 rows"),
    (dict(bank_f=F.long(), bank_s=S.long()), TypeError, "bank_f must be one of float64"),
    (dict(rows=5, sampling=2), ValueError, "rows must be 6 for the ring, all rows of the batch, got 5"),
    (dict(s=S[:5]), ValueError, "s must have 6 rows, got 5"),
    (dict(s=S[:, :2]), ValueError, "s must have rows of the shape of bank_f's rows"),
    (dict(s=S.double()), TypeError, "s and bank_f must have the same dtype"),
    (dict(s=S.to("meta")), ValueError, "s and bank_f must be on the same device, got meta and cpu"),
    (dict(seed=SEED.to("meta")), ValueError, "device.*, got meta"),
]


def check_raises(call, changes, error, message, inference):
    with torch.inference_mode(inference), pytest.raises(error, match=message) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(("changes", "error", "message"), INVALID_DRAWS + INVALID_BANKS)
def test_invalid_arguments_raise(changes, error, message, inference):
    check_raises(echo, changes, error, message, inference)
    check_raises(echo_backward, changes, error, message, inference)
    with pytest.raises(error):
        echo(**{name: v.to("meta") if isinstance(v, torch.Tensor) else v for name, v in changes.items()})


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("changes", "error", "message"), [*INVALID_DRAWS, (dict(bank_rows=0), ValueError, "at least 2 rows")]
)
def test_invalid_draw_arguments_raise(changes, error, message, inference):
    check_raises(indices, changes, error, message, inference)


def test_empty_bank_raises():
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        indices(bank_rows=0, exclude_self=False)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("call", "changes", "error", "message"),
    [
        (echo, dict(f=None), ValueError, "f and s must both be tensors or both be None"),
        (echo, dict(f=F[:5]), ValueError, "f must have 6 rows, got 5"),
        (echo_backward, dict(grad=F[:5]), ValueError, "grad must have 6 rows, got 5"),
        (echo_backward, dict(grad=F.double()), TypeError, "grad and bank_f must have the same dtype"),
        (matrix, dict(s=MATRICES[:5]), ValueError, r"f and s must have shapes \(B, d\) and \(B, d, d\)"),
        (matrix, dict(f=F.half(), s=MATRICES.half()), TypeError, "f must be float64 or float32"),
        (matrix, dict(f=F[:1], s=MATRICES[:1]), ValueError, "f must have at least 2 rows"),
        (matrix, dict(f=torch.zeros(2, 65), s=torch.zeros(2, 65, 65)), ValueError, "f must have at most 64 columns"),
        (matrix, dict(seed=torch.zeros(2, dtype=torch.int64)), ValueError, "seed must be an int64 tensor of one"),
        (matrix_backward, dict(grad=F[:5]), ValueError, "grad and z must have the same shape"),
        (matrix_backward, dict(z=F[:5], grad=F[:5]), ValueError, "must have shapes"),
        (matrix_backward, dict(grad=F.double()), TypeError, "grad and z must have the same dtype"),
    ],
)
def test_invalid_tensors_raise(call, changes, error, message, inference):
    check_raises(call, changes, error, message, inference)


def test_exported_program_matches_op():
    class AddNoise(torch.nn.Module):
        def forward(self, f, s, seed):
            return torch.ops.echo_ext.echo(f, s, f, s, seed, 6, 2, 0, True)

    program = torch.export.export(AddNoise(), (F, S, SEED)).module()
    assert torch.equal(program(F, S, SEED), echo())


# Calls the ops with random arguments in a child process: each call must return or raise, never crash.
FUZZ = """
import random, sys
import torch
import echo_ext

seed, calls = int(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
torch.manual_seed(seed)
torch.set_num_threads(1)
COUNTS = (-(2**63), -1, 0, 1, 2, 3, 5, 8, 9, 77, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
USUAL = (0, 1, 2, 3, 5, 8)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64, torch.bool)

def shape():
    return random.choice(((5, 3), (5, 3), (8, 3), (5, 3, 3), (8, 3, 3), (5,), (), (0, 3), (5, 0), (1, 3), (2, 65)))

def tensor():
    if random.random() < 0.6:
        return torch.rand(random.choice(((5, 3), (5, 3), (5, 3), (8, 3), (5, 3, 3))))
    kind = random.randrange(9)
    if kind == 0:
        return torch.rand(5, 3).to_sparse()
    if kind == 1:
        return torch.nested.nested_tensor([torch.rand(3), torch.rand(3)])
    if kind == 2:
        return torch.rand(5, 3).to("meta")
    if kind == 3:
        return torch._efficientzerotensor((5, 3))
    if kind == 4:
        return torch._neg_view(torch.rand(5, 3))
    if kind == 5:
        return torch.rand(3, 5).T
    if kind == 6:
        return torch.rand(5, 3, requires_grad=True)
    if kind == 7:
        return torch.rand(5, 1).expand(5, 3)
    return torch.ones(shape(), dtype=random.choice(DTYPES))

def seed_of():
    return random.choice((torch.tensor(7), torch.tensor(7), torch.tensor([-1]), torch.zeros(0, dtype=torch.int64),
                          torch.tensor(7, device="meta"), torch.tensor(1.0), torch._neg_view(torch.tensor(3)),
                          torch._efficientzerotensor((), dtype=torch.int64), torch.zeros(2, dtype=torch.int64)))

def count():
    return random.choice(USUAL if random.random() < 0.8 else COUNTS)

def argument(type_, name):
    if name == "seed":
        return seed_of()
    if type_ == "Optional[Tensor]":
        return None if random.random() < 0.2 else tensor()
    if type_ == "Tensor":
        return tensor()
    if type_ == "bool":
        return random.random() < 0.5
    return count()

def usual(matrices, name):
    if name == "s" and matrices:
        return torch.rand(5, 3, 3)
    known = {"seed": torch.tensor(7), "rows": 5, "bank_rows": 5, "num_terms": 3, "sampling": 1, "exclude_self": True}
    return known[name] if name in known else torch.rand(5, 3)

ops = [getattr(torch.ops.echo_ext, name).default for name in
       ("echo", "echo_backward", "echo_indices", "echo_matrix", "echo_matrix_backward")]
done = dict.fromkeys(ops, 0)
for call in range(calls):
    op = random.choice(ops)
    # Keep most arguments valid, so that one invalid argument does not mask the others.
    share = random.choice((0.1, 0.25, 1.0))
    arguments = [
        argument(str(a.type), a.name) if random.random() < share else usual(op is ops[3] or op is ops[4], a.name)
        for a in op._schema.arguments
    ]
    if op is ops[2] and arguments[1] > 100:  # such a call may be valid, but its result takes gigabytes
        continue
    with torch.inference_mode(random.random() < 0.3):
        try:
            op(*arguments)
            done[op] += 1
        except (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError):
            pass
print("ended", *done.values())
"""


def fuzz(calls):
    seed = os.environ.get("ECHO_EXT_TEST_SEED", str(torch.initial_seed() % 2**31))
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, seed, str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=HERE)
    assert done.returncode == 0, f"seed {seed}, exit code {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout.startswith("ended")
    assert min(map(int, done.stdout.split()[1:])) > 0, done.stdout


def test_random_arguments_never_crash():
    fuzz(5_000)


@pytest.mark.fuzz
def test_many_random_arguments_never_crash():
    fuzz(100_000)
