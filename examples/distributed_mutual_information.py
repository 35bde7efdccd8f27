"""Estimate mutual information from rows that lie on several processes, and compare with one process on all rows.

Each process has its own rows of x and y, as when each reads its own files, and all of them get the estimate of all
rows. Without torchrun there is one process, which has all rows.

    torchrun --nproc-per-node 2 examples/distributed_mutual_information.py

The estimates are 0.465 and 0.460 nats with k = 3 and 10, where the true information is 0.446. The script succeeds (exit
status 0) if they are those of one process.
"""

import argparse
import time

import numpy as np
import torch
from torch import distributed as dist

import echo_ext


def make_rows(n):
    """Return x and y with 0.22 nats of mutual information in each of their two columns; equal in every process."""
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, n, 2))
    return x, 0.6 * x + 0.8 * noise


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000, help="rows of all processes (default: 20000)")
    args = parser.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.set_num_threads(1)
    x, y = make_rows(args.samples)
    own = np.array_split(np.arange(args.samples), size)[rank]

    start = time.perf_counter()
    estimates = echo_ext.distributed.mutual_information(x[own], y[own], k=[3, 10])
    seconds = time.perf_counter() - start
    error = 0.0
    if rank == 0:
        print(f"processes: {size}, rows of the first: {len(own)}, time: {seconds:.2f} s")
        print(f"mutual information: {estimates[0]:.4f} nats with k = 3, {estimates[1]:.4f} with k = 10")
        error = abs(estimates - echo_ext.mutual_information(x, y, k=[3, 10])).max()
        print(f"difference from the estimates of one process: at most {error:.0e}")
    if dist.is_initialized():
        dist.destroy_process_group()
    return int(error > 1e-12)


if __name__ == "__main__":
    raise SystemExit(main())
