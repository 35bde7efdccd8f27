"""Fresh random input on every run: the seed is in the report's header, and ECHO_EXT_TEST_SEED repeats it."""

import os
import secrets

import pytest
import torch

SEED = int(os.environ.get("ECHO_EXT_TEST_SEED", secrets.randbits(31)))


def pytest_report_header() -> str:
    return f"ECHO_EXT_TEST_SEED={SEED}"


@pytest.fixture(autouse=True)
def fresh_randomness(request):
    """Every test its own random stream, the same whether it runs alone or with others."""
    torch.manual_seed(SEED + sum(map(ord, request.node.nodeid)))


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
