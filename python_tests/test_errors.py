"""Every error is one line that names the argument, its value and what is valid."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import echo_ext
from echo_ext import _C, reference

F = torch.zeros(5, 3)
BANK = (torch.zeros(4, 3), torch.zeros(4, 3))


def sample(**changes):
    arguments = {"f": F, "s": F, **changes}
    return echo_ext.echo_sample(arguments.pop("f"), arguments.pop("s"), **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample(f=[1.0]), TypeError, "f must be a torch.Tensor, got list"),
        (lambda: sample(s=F.long()), TypeError, "s must be one of float64, float32, bfloat16, float16, got int64"),
        (
            lambda: sample(f=F[0, 0]),
            ValueError,
            "f must have the sample as its dimension 0, got a tensor without dimensions",
        ),
        (lambda: sample(s=F[:4]), ValueError, "f and s must have the same shape, got (5, 3) and (4, 3)"),
        (
            lambda: sample(s=F.double()),
            TypeError,
            "f and s must have the same dtype, got torch.float32 and torch.float64",
        ),
        (lambda: sample(s=F.to("meta")), ValueError, "f and s must be on the same device, got cpu and meta"),
        (lambda: sample(f=F[:1], s=F[:1]), ValueError, "f must have at least 2 rows"),
        (lambda: sample(f=F[:0], s=F[:0]), ValueError, "f must have at least 2 rows"),
        (
            lambda: sample(num_terms=5),
            ValueError,
            "num_terms must be at most 4, the number of other rows in the batch, got 5",
        ),
        (
            lambda: sample(num_terms=5, bank=BANK),
            ValueError,
            "num_terms must be at most 4, the number of rows in the bank, got 5",
        ),
        (lambda: sample(num_terms=0), ValueError, "num_terms must be at least 1, got 0"),
        (lambda: sample(num_terms=2.0), TypeError, "num_terms must be an int, got 2.0"),
        (lambda: sample(num_terms=True), TypeError, "num_terms must be an int, got True"),
        (lambda: sample(sampling="rings"), ValueError, "sampling must be one of 'permutation', 'replacement', 'ring'"),
        (lambda: sample(sampling=None), ValueError, "sampling must be one of 'permutation', 'replacement', 'ring'"),
        (lambda: sample(seed="x"), TypeError, "seed must be None, an int or an int64 tensor, got 'x'"),
        (lambda: sample(seed=2**63), ValueError, "seed must fit into 64 bits"),
        (
            lambda: sample(seed=torch.zeros(2, dtype=torch.int64)),
            ValueError,
            "seed must be an int64 tensor of one element",
        ),
        (lambda: sample(seed=torch.tensor(1.0)), ValueError, "seed must be an int64 tensor of one element"),
        (lambda: sample(bank=F), TypeError, "bank must be a pair (f_bank, s_bank) of tensors"),
        (lambda: sample(bank=(F, F[:4])), ValueError, "bank[0] and bank[1] must have the same shape"),
        (lambda: sample(bank=(F[:0], F[:0])), ValueError, "bank must have at least one row"),
        (
            lambda: sample(bank=(F[:, :2], F[:, :2])),
            ValueError,
            "bank must have rows of the shape of f's rows, (3,), got (2,)",
        ),
        (
            lambda: sample(bank=(F.double(), F.double())),
            TypeError,
            "bank and f must have the same dtype, got torch.float64 and torch.float32",
        ),
        (
            lambda: sample(bank=(F.to("meta"), F.to("meta"))),
            ValueError,
            "bank and f must be on the same device, got meta and cpu",
        ),
        (lambda: echo_ext.echo_noise(F, F, size=3), ValueError, "size must be None without a bank, got 3"),
        (lambda: echo_ext.echo_noise(F, F, size=0, bank=BANK), ValueError, "size must be at least 1, got 0"),
        (lambda: echo_ext.echo_noise(None, None, bank=BANK), TypeError, "f must be a torch.Tensor, got NoneType"),
        (lambda: echo_ext.echo_indices(1, seed=0), ValueError, "at least 2 rows"),
        (
            lambda: echo_ext.echo_indices(4, num_terms=4, seed=0),
            ValueError,
            "num_terms must be at most 3, the number of other rows in the batch, got 4",
        ),
        (lambda: echo_ext.echo_indices(-1, seed=0), ValueError, "batch_size must be at least 1, got -1"),
        (lambda: echo_ext.echo_indices(2.5, seed=0), TypeError, "batch_size must be an int, got 2.5"),
        (lambda: echo_ext.max_scale(0), ValueError, "num_terms must be at least 1, got 0"),
        (lambda: echo_ext.max_scale(9, bound=0.0), ValueError, "bound must be a finite number above 0, got 0.0"),
        (lambda: echo_ext.max_scale(9, tol=float("nan")), ValueError, "tol must be a finite number above 0, got nan"),
        (
            lambda: reference.echo_noise(F, F, torch.tensor([[0, 5]])),
            ValueError,
            "indices must be numbers of rows, from 0 to 4, got 0 to 5",
        ),
        (
            lambda: reference.echo_noise(F, F, torch.tensor([[-1]])),
            ValueError,
            "indices must be numbers of rows, from 0 to 4",
        ),
    ],
)
def test_invalid_arguments_raise(call, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_zero_width_is_valid():
    empty = torch.zeros(5, 0, requires_grad=True)
    z = echo_ext.echo_sample(empty, empty.detach())
    assert z.shape == (5, 0)
    z.sum().backward()
    assert empty.grad.shape == (5, 0)


@pytest.mark.parametrize("core", [None, b"of another platform"])
def test_import_without_native_module_raises(tmp_path, core):
    (tmp_path / "echo_ext").mkdir()
    shutil.copy(echo_ext.__file__, tmp_path / "echo_ext")
    if core is not None:
        (tmp_path / "echo_ext" / Path(_C.__file__).name).write_bytes(core)
    # Without the finder of an installation in place, which would find the core of the installed package.
    finders = "[each for each in sys.meta_path if 'editable' not in each.__module__]"
    code = f"import sys; sys.meta_path = {finders}; import echo_ext"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        f"ImportError: echo_ext's native core is not in {tmp_path / 'echo_ext'}, or not for Python 3."
    )
    assert f" on {platform.system()} {platform.machine()} (" in line
