"""Results on the device against the oracle, against the CPU, and against themselves."""

import contextlib
import functools
import itertools
import time

import torch
from gpu_device import Mismatch, poisoned_memory

import echo_ext
from echo_ext import distributed, reference

SAMPLINGS = ("permutation", "replacement", "ring")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# Rows, columns, rows of a bank. The first is the shape for which speed was asked: two passes over the rows, full tiles.
SHAPES = [(1024, 128, 0), (2, 1, 0), (33, 17, 0), (257, 129, 0), (600, 70, 0), (2100, 9, 0), (2000, 40, 0)]
SHAPES += [(1, 5, 40), (300, 40, 7), (64, 20, 2500)]
ORACLE_BYTES = 2**30  # of one of the oracle's tensors, of which some ten live at a time
LAYOUTS = {
    "at an odd offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "transposed": lambda t: t.T.contiguous().T,
    "every second column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}


def inputs(device, rows, width, dtype=torch.float32, scale=None, place=None):
    """f and s; ``place`` lays them out in memory."""
    f = torch.randn(rows, width, device=device.type, dtype=torch.float64).tanh()
    s = torch.randn(rows, width, device=device.type, dtype=torch.float64)
    s = 0.97 * torch.sigmoid(s) if scale is None else torch.full_like(s, scale)
    return [(place or torch.clone)(t.to(dtype)).detach().requires_grad_() for t in (f, s)]


def run(function, tensors, grad):
    """The function's value and its gradients."""
    value = function(*tensors)
    return (value, *torch.autograd.grad(value, tensors, grad.to(value)))


@contextlib.contextmanager
def deterministic(mode):
    torch.use_deterministic_algorithms(mode)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def require_close(found, expected, tolerance, against):
    """The largest error relative to the largest value, of the result and of each gradient."""
    for what, (a, b) in enumerate(zip(found, expected, strict=True)):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item()
        if not error <= tolerance:  # written so that NaN fails
            name = "value" if what == 0 else f"gradient {what}"
            raise Mismatch(f"{name}: error {error:.2e} against {against}, must be at most {tolerance:.2e}")


# ---- Echo ------------------------------------------------------------------------------------------------------------


def by_oracle(tensors, indices, grad):
    """The oracle's results in float64, some columns at a time, so that its (rows, terms, columns) tensors fit."""
    step = max(1, ORACLE_BYTES // (8 * indices.numel()))
    parts = []
    for begin in range(0, grad.shape[1], step):
        columns = [t.detach()[:, begin : begin + step].double().requires_grad_() for t in tensors]
        parts.append(
            run(
                lambda f, s, *bank: reference.echo_sample(f, s, indices, bank=bank or None),
                columns,
                grad[:, begin : begin + step],
            )
        )
    return [torch.cat(pieces, 1) for pieces in zip(*parts, strict=True)]


def compare_with_oracle(
    device, shape, sampling, dtype, mode=False, scale=None, num_terms=None, place=None, stream=contextlib.nullcontext
):
    rows, width, bank_rows = shape
    seed = int(torch.randint(2**62, ()))
    options = {"sampling": sampling, "seed": seed, "num_terms": num_terms}
    tensors = inputs(device, rows, width, dtype, scale, place)
    tensors += inputs(device, bank_rows, width, dtype, scale, place) if bank_rows else []
    grad = (place or torch.clone)(torch.randn(rows, width, device=device.type).to(dtype))
    device.synchronize()
    with deterministic(mode), poisoned_memory(), stream():
        late = [t.detach().clone().requires_grad_() for t in tensors] if place is None else tensors
        found = run(lambda f, s, *bank: echo_ext.echo_sample(f, s, bank=bank or None, **options), late, grad)
    indices = echo_ext.echo_indices(rows, bank_size=bank_rows or None, device=device.type, **options)
    require_close(found, by_oracle(tensors, indices, grad.double()), TOLERANCES[dtype], "the oracle")


def check_poison(device):
    """That new memory of the forward and of the backward pass is poisoned; else the comparisons find less."""
    tensors = inputs(device, 50, 9)
    with poisoned_memory() as memory:
        value = echo_ext.echo_sample(*tensors)
        in_forward = memory.count
        torch.autograd.grad(value.sum(), tensors)
    if not 0 < in_forward < memory.count:
        raise Mismatch(
            f"poisoned {in_forward} tensors in forward, {memory.count - in_forward} in backward, must be > 0"
        )


def check_repeats(device, sampling):
    f, s = inputs(device, 700, 50)
    grad = torch.randn_like(f)
    with deterministic(True):
        draw = functools.partial(echo_ext.echo_sample, sampling=sampling, seed=5)
        once, again = (run(draw, (f, s), grad) for _ in range(2))
    if not all(map(torch.equal, once, again)):
        raise Mismatch("not the same bits twice in deterministic mode")


def check_draws(device, sampling):
    draw = functools.partial(echo_ext.echo_indices, 500, sampling=sampling, seed=9)
    if not torch.equal(draw(device=device.type).cpu(), draw(device="cpu")):
        raise Mismatch("not the CPU's draws")


def check_second_device(sampling):
    """Tensors on cuda:1 while cuda:0 is the current device, on a stream of cuda:1."""
    device = torch.device("cuda", 1)
    f, s = (torch.rand(400, 33, device="cuda:0") for _ in range(2))
    expected = echo_ext.echo_sample(f, s, sampling=sampling, seed=3)
    there = [t.to(device) for t in (f, s)]
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream), torch.cuda.device(0):
        found = echo_ext.echo_sample(*there, sampling=sampling, seed=3)
        if torch.cuda.current_device() != 0:
            raise Mismatch(f"the current device is {torch.cuda.current_device()} after the call, must be 0")
    stream.synchronize()
    require_close([found], [expected], 1e-6, "cuda:0")


def smaller(shape):
    return tuple(min(size, limit) for size, limit in zip(shape, (40, 9, 50), strict=True))


def compare_echo(cases, small):
    device = cases.device
    shapes = list(dict.fromkeys(map(smaller, SHAPES))) if small else SHAPES

    def compare(shape, sampling, dtype, **options):
        name = f"{shape} {sampling} {dtype} {options or ''}"
        cases.run(name, lambda: compare_with_oracle(device, shape, sampling, dtype, **options))

    def compare_all(shape):
        begin = time.perf_counter()
        for sampling, dtype in itertools.product(SAMPLINGS, TOLERANCES):
            for mode, scale in ((False, None), (True, None), (False, 0.97)):
                compare(shape, sampling, dtype, mode=mode, scale=scale)
        print(f"{shape}: {time.perf_counter() - begin:.1f} s")

    cases.run("poisoned memory", lambda: check_poison(device))
    compare_all(shapes[0])
    for sampling in SAMPLINGS:
        cases.run(f"{sampling}, repeated", lambda how=sampling: check_repeats(device, how))
        cases.run(f"{sampling}, draws", lambda how=sampling: check_draws(device, how))
        compare(smaller((401, 33, 0)) if small else (401, 33, 0), sampling, torch.float32, stream=device.busy_stream)
        for place, shape in itertools.product(LAYOUTS.values(), ((65, 33, 0), (30, 20, 70))):
            for dtype in TOLERANCES:
                compare(shape, sampling, dtype, place=place)
    # Many segments of the ring: its grid and its 64-bit offsets at scale.
    for dtype in (torch.float32, torch.float64):
        compare((300, 9, 0) if small else (2**16, 64, 0), "ring", dtype, num_terms=20 if small else 200)
    for shape in shapes[1:]:
        compare_all(shape)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        for sampling in SAMPLINGS:
            cases.run(f"{sampling}, on cuda:1", lambda how=sampling: check_second_device(how))
    else:
        print("skipped: tensors on another device than the current one, which needs two GPUs")


# ---- Circles ---------------------------------------------------------------------------------------------------------


def circles(device, rows, width, dtype, scale=0.9):
    """The noises made around a whole circle, each with its own input: matrices, and one rank of many."""
    matrices = torch.randn(rows, width, width, dtype=torch.float64)
    # On the CPU: above 32 x 32 a GPU takes a millisecond for each.
    matrices *= scale / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    f, s = inputs(device, rows, width, dtype, scale)
    yield "matrix ring", echo_ext.echo_sample_matrix, (f, matrices.to(device.type, dtype).requires_grad_())
    yield "one rank's ring", distributed.echo_sample, (f, s)


def compare_circles(cases, small):
    """With the CPU, which draws the same circle."""

    def compare(noise, tensors, seed, tolerance):
        grad = torch.randn(tensors[0].shape).to(tensors[0].dtype)
        draw = functools.partial(noise, seed=seed)
        with poisoned_memory():
            found = run(draw, tensors, grad.to(cases.device.type))
        on_cpu = [t.detach().cpu().requires_grad_() for t in tensors]
        require_close(found, run(draw, on_cpu, grad), tolerance, "the CPU")

    # Matrices are copied by elements, and where rows are whole vectors by these.
    sizes = ((2, 40), (1, 9)) if small else ((70, 2, 1500), (1, 33, 36))
    for rows, width, dtype in itertools.product(*sizes, TOLERANCES):
        for name, noise, tensors in circles(cases.device, rows, width, dtype):
            case = functools.partial(compare, noise, tensors, rows, 4 * TOLERANCES[dtype])
            cases.run(f"{name}, {rows} x {width} {dtype}", case)


# ---- Nearest neighbors -----------------------------------------------------------------------------------------------


def related(n, dim, dtype=torch.float64, tied=False):
    """Two variables on the CPU; tied: with many equal values."""
    x = torch.randn(n, dim, dtype=torch.float64)
    y = 0.6 * x + 0.8 * torch.randn_like(x)
    return [(v.mul(2).round() if tied else v).to(dtype) for v in (x, y)]


def estimates(x, y):
    """What reaches every kernel: lists in registers and in shared memory, windows, groups of columns, boundaries,
    pairs of columns.
    """
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    estimate = echo_ext.mutual_information(x, y, k=[1, 6, 12, 30])
    yield from (estimate, *torch.autograd.grad(estimate.sum(), (x, y)))
    x, y = x.detach(), y.detach()
    for method in ("ksg1", "ksg2", "bi-ksg", "mixed"):
        yield echo_ext.mutual_information(x, y, k=[3, 40], method=method, exclude_within=2, local=True)
    yield echo_ext.conditional_mutual_information(x, y, x.flip(0), method="ksg2")
    yield echo_ext.mutual_information_discrete(x, (y[:, 0] > 0).long())
    yield echo_ext.mutual_information_matrix(x, y)
    for k in (2, 7, 15, 31, 50):
        yield from echo_ext.knn(x, k=k)
    yield from echo_ext.knn(x, y[:100], metric="euclidean")


def compare_neighbors(cases, small):
    """With the CPU's estimates."""

    def compare(x, y, tolerance):
        with poisoned_memory():
            found = [value.cpu() for value in estimates(x.to(cases.device.type), y.to(cases.device.type))]
        for i, (ours, expected) in enumerate(zip(found, estimates(x, y), strict=True)):
            if not torch.allclose(ours, expected, rtol=tolerance, atol=tolerance):
                raise Mismatch(f"result {i} is {(ours - expected).abs().max():.2e} away from the CPU's")

    sizes = itertools.product((61, 200 if small else 3000), (1, 4), (torch.float64, torch.float32), (False, True))
    for n, dim, dtype, tied in sizes:
        case = functools.partial(compare, *related(n, dim, dtype, tied), 1e-12 if dtype == torch.float64 else 1e-5)
        cases.run(f"{n} x {dim}, {dtype}, tied={tied}", case)


# ---- NaN and a scale of 1 --------------------------------------------------------------------------------------------


def check_nan(device, sampling, rows, width, num_terms):
    """A NaN in one s reaches exactly the noises of its column that multiply by it."""
    sick_row, sick = rows // 2, width // 2
    f, s = inputs(device, rows, width, scale=0.9)
    with torch.no_grad():
        s[sick_row, sick] = torch.nan
    seed = int(torch.randint(2**62, ()))
    value = run(
        lambda f, s: echo_ext.echo_sample(f, s, sampling=sampling, num_terms=num_terms, seed=seed),
        (f, s),
        torch.ones_like(f),
    )[0]
    healthy = [column for column in range(width) if column != sick]
    if not value[:, healthy].isfinite().all():
        raise Mismatch("a NaN in one column of s reached another column")
    # The last term's own s is not used; of the terms before it, these are drawn while the weight is still visible.
    used = num_terms - 1 if num_terms is not None else 100
    options = {"num_terms": used, "sampling": sampling, "seed": seed, "device": device.type}
    must_be = (echo_ext.echo_indices(rows, **options) == sick_row).any(1)
    must_be[sick_row] = True
    is_nan = value[:, sick].isnan()
    if num_terms is None:  # later terms may be left out or not, as their weight is invisible
        is_nan = is_nan & must_be
    if not torch.equal(is_nan, must_be):
        raise Mismatch(
            f"{int((is_nan != must_be).sum())} of {rows} rows are NaN without, or finite with, a NaN among them"
        )


def check_scale_of_one(device, sampling, rows, width):
    """With s = 1 in a column each row adds up all of that column, once: the noise never becomes invisible."""
    f, s = inputs(device, rows, width)
    with torch.no_grad():
        s[:, 0] = 1
    value = run(lambda f, s: echo_ext.echo_sample(f, s, sampling=sampling), (f, s), torch.ones_like(f))[0]
    column = f.detach()[:, 0].double()
    error = ((value[:, 0].double() - column.sum()).abs().max() / column.abs().sum()).item()
    if not (error <= 1e-5 and value.isfinite().all()):
        raise Mismatch(f"error {error:.2e} against the sum of all rows, must be at most 1e-5")


def check_nonfinite(cases, small):
    """Each must return in a short time; a step of its own, since a kernel that does not return ends its process."""
    rows, width = (256, 8) if small else (2**14, 64)
    for sampling in SAMPLINGS:
        checks = {
            "NaN, 40 terms": functools.partial(check_nan, cases.device, sampling, rows, width, 40),
            "NaN, all terms": functools.partial(check_nan, cases.device, sampling, rows, width, None),
        }
        if sampling != "replacement":  # which draws some rows twice and others not at all
            checks["s = 1"] = functools.partial(check_scale_of_one, cases.device, sampling, rows, width)
        for name, check in checks.items():
            print(f"{sampling}, {name}: {rows} x {width} ...")
            begin = time.perf_counter()
            cases.run(f"{sampling}, {name}", check)
            print(f"{sampling}, {name}: {time.perf_counter() - begin:.2f} s")
