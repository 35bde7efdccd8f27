"""The emulated device itself: it runs barriers and warp intrinsics, and it finds the faults of kernels."""

from dataclasses import replace

import pytest
import torch
from emulated_device import Device, DeviceError


def self_test(device: Device, kernel: str, blocks: int = 1, shared_bytes: int = 256) -> torch.Tensor:
    """What a kernel of one or more blocks of 64 threads makes of the numbers from 0 to 63."""
    (values,) = device.call(
        "self_test", kernel, blocks=blocks, shared_bytes=shared_bytes, results={"values": torch.empty(64)}
    )
    return values


@pytest.mark.parametrize("descending", [False, True])
def test_barriers_and_warp_intrinsics_work(device, descending):
    device = replace(device, descending=descending)
    assert torch.equal(self_test(device, "reverse"), torch.arange(63.0, -1, -1))
    sums = torch.tensor([496.0, 1520 + 32000 + 100000]).repeat_interleave(32)
    assert torch.equal(self_test(device, "sum_of_warp"), sums)


@pytest.mark.parametrize("descending", [False, True])
def test_a_missing_barrier_shows(device, descending):
    assert self_test(replace(device, descending=descending), "reverse_without_barrier").isnan().any()


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        ("barrier_for_some", {}, "exited while others wait at __syncthreads"),
        ("vote_of_exited_lanes", {}, "names a lane that has exited"),
        ("barrier_against_vote", {}, "waits at __syncthreads, another at a warp intrinsic"),
        ("shared_out_of_bounds", {}, "use-after-poison"),
        ("global_out_of_bounds", {}, "heap-buffer-overflow"),
        ("sum_of_warp", {"shared_bytes": 228 * 1024}, "invalid argument"),
        ("sum_of_warp", {"blocks": 65536}, "invalid configuration"),
    ],
)
def test_faults_are_errors(device, kernel, options, message):
    with pytest.raises(DeviceError, match=message):
        self_test(device, kernel, **options)
    self_test(device, "reverse")  # in another process, if need be
