"""The drivers and devices that a CUDA build supports, and the errors for those that it does not."""

import re
from pathlib import Path

import pytest
import torch

from echo_ext import _C, _cuda, _native, cli

ROOT = Path(__file__).parent.parent
REBUILD_WITH_CUDA_12 = (
    "update the driver, or rebuild with a system CUDA 12 toolkit (driver 525 or newer): "
    "CUDACXX=/usr/local/cuda-12/bin/nvcc ECHO_EXT_CUDA=1 pip install --force-reinstall --no-deps ."
)
TOO_OLD = (
    "the NVIDIA driver 570.86.10 (CUDA 12.8) is too old; "
    f"echo-ext was built with CUDA 13.0, which needs driver 580 or newer: {REBUILD_WITH_CUDA_12}"
)


# ---- Drivers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("supported", "built"),
    [(13000, "13.0.88"), (13000, "13.2.1"), (13020, "13.0.88"), (12040, "12.9.86"), (13000, "12.9.86")],
)
def test_supported_driver_is_accepted(supported, built):
    assert _cuda.driver_refusal(supported, built, "580.65.06") is None


@pytest.mark.parametrize(
    ("supported", "built", "version", "refusal"),
    [
        (12080, "13.0.88", "570.86.10", TOO_OLD),
        (12080, "13.0.88", None, TOO_OLD.replace(" 570.86.10", "")),
        (
            11080,
            "12.9.86",
            "520.61.05",
            "the NVIDIA driver 520.61.05 (CUDA 11.8) is too old; "
            "echo-ext was built with CUDA 12.9, which needs driver 525 or newer: update the driver",
        ),
        (
            13000,
            "14.1.3",
            "580.65.06",
            "the NVIDIA driver 580.65.06 (CUDA 13.0) is too old; echo-ext was built with CUDA 14.1, "
            f"which needs a driver for CUDA 14.0 or newer: {REBUILD_WITH_CUDA_12}",
        ),
        (
            0,
            "13.0.88",
            None,
            "no NVIDIA driver was found; "
            "echo-ext was built with CUDA 13.0, which needs driver 580 or newer: install one",
        ),
    ],
)
def test_unsupported_driver_is_rejected(supported, built, version, refusal):
    assert _cuda.driver_refusal(supported, built, version) == refusal


def test_reported_driver_version_is_plausible():
    supported = _C.cuda_driver_version()
    assert supported == 0 or supported >= 11000
    if torch.cuda.is_available() and _C.cuda_version is not None:
        assert supported > 0


@pytest.mark.parametrize(
    ("driver", "refusal"),
    [
        ((None,), "echo-ext was built without CUDA; rebuild it where nvcc is found: ECHO_EXT_CUDA=1 pip install"),
        (("13.0.88", 12080, "570.86.10"), TOO_OLD),
    ],
)
def test_cuda_call_reports_missing_support(pretend_driver, driver, refusal):
    pretend_driver(*driver)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=re.escape(f"f is a CUDA tensor, but {refusal}")) as caught:
            _native.device_and_stream("f", torch.device("cuda"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "fact"),
    [
        (("13.0.88", 13000, "580.159.04"), "580.159.04, supports CUDA 13.0"),
        (("13.0.88", 13000), "version unknown, supports CUDA 13.0"),
        (("13.0.88", 12080, "570.86.10"), TOO_OLD),
        (("13.0.88", 0, "580.159.04"), "580.159.04, but its library libcuda.so.1 is not found"),
        (("13.0.88",), "none found"),
        ((None, 0, "580.159.04"), "580.159.04"),
        ((None,), "none found"),
    ],
)
def test_info_shows_driver(capsys, pretend_driver, driver, fact):
    pretend_driver(*driver)
    assert cli.main(["info"]) == 0
    assert f"\ndriver        {fact}\n" in capsys.readouterr().out


def test_commands_reject_old_driver_without_output(capsys, tmp_path, monkeypatch, pretend_driver):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pretend_driver("13.0.88", 12080, "570.86.10")
    assert cli.main(["info"]) == 0
    assert f"\nCUDA usable   no; {TOO_OLD}\n" in capsys.readouterr().out
    for command in (("train", "--recipe", "echo", "--data", "digits"), ("demo",)):
        assert cli.main([*command, "--device", "cuda"]) == 2
        captured = capsys.readouterr()
        refusal = f"--device must be a device that can be used, got 'cuda': {TOO_OLD}"
        assert captured.err == f"echo-ext {command[0]}: error: {refusal}\n"
        assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


# ---- Architectures ---------------------------------------------------------------------------------------------------

CAPABILITIES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)  # supported by nvcc 13
TEGRA = (87, 110)  # Orin and Thor, which do not run machine code built for other devices


def default_architectures():
    lists = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES (\d[^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert len(lists) == 2  # for older and newer versions of nvcc
    return [architectures.split() for architectures in lists]


@pytest.mark.parametrize("architectures", default_architectures(), ids=" ".join)
def test_default_architectures_cover_every_device(architectures):
    machine_code = [int(name.removesuffix("-real")) for name in architectures]
    ptx = [int(name) for name in architectures if name.isdigit()]
    for capability in CAPABILITIES:
        assert min(ptx) <= capability
        if capability not in TEGRA and capability <= max(machine_code):
            assert any(code // 10 == capability // 10 and code <= capability for code in machine_code), capability
    assert max(code for code in ptx if code <= 110) == 90  # the PTX that Thor compiles
