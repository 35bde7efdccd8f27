"""The benchmarks' shared helpers; tables and figures that follow from the results in benchmarks/results."""

import importlib
import json
import sys
import time

import pytest
import torch
from gpu_stand_ins import BENCHMARKS

RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_tables_and_figures_follow_from_the_results(file):
    benchmark = importlib.import_module(f"bench_{file.stem.removesuffix('_cpu').removesuffix('_cuda')}")
    result = json.loads(file.read_text())
    assert result.keys() >= {"date", "device", "device_type", "threads", "versions"}
    tables = file.with_suffix(".md")
    assert tables.is_file() == hasattr(benchmark, "table")
    if tables.is_file():
        assert benchmark.table(result) == tables.read_text()
    figure = file.with_suffix(".png")
    assert figure.is_file() == hasattr(benchmark, "plot")
    if figure.is_file():
        pytest.importorskip("matplotlib")
        assert benchmark.plot(result).axes


def test_calls_are_timed_in_turn():
    import timing

    order, threads = [], torch.get_num_threads()

    def sleep(name, seconds):
        order.append((name, torch.get_num_threads()))
        time.sleep(seconds)

    calls = {"short": lambda: sleep("short", 0.001), "long": lambda: sleep("long", 0.002)}
    times = timing.time_calls(calls, 0.02, threads=1, rounds=4)
    names = [name for index, (name, _) in enumerate(order) if index == 0 or order[index - 1][0] != name]
    assert names == ["short", "long", "short", "long", "short"]  # back and forth
    assert {count for _, count in order} == {1}
    assert torch.get_num_threads() == threads
    for name, seconds in (("short", 0.001), ("long", 0.002)):
        summary = times[name].summary()
        assert seconds <= summary["minimum"] <= summary["median"]
    assert times["long"].ratio(times["long"]) == 1


def test_growth_exponent_of_a_power():
    import timing

    points = [(n, 3e-9 * n**1.5) for n in (10, 100, 1000, 5000)]
    assert timing.growth_exponent(points) == pytest.approx(1.5)
    assert timing.growth_exponent(points[:1]) is None


def allocate(size):
    import memory

    return memory.peak_bytes(lambda: bytearray(size).count(1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_the_call():
    import memory

    size = 2**26
    assert memory.in_new_process(allocate, size) == pytest.approx(size, rel=0.1)


def test_options_of_a_quick_run(capsys):
    import reporting

    parser = reporting.make_parser("About.", device=True, seconds=2.0)
    options = reporting.parse(parser, [])
    assert (options.seconds, options.out) == (2.0, reporting.RESULTS)
    options = reporting.parse(parser, ["--quick"])
    assert (options.seconds, options.out) == (0.001, None)
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            reporting.parse(parser, ["--device", "cuda"])
        assert "--device must be cpu where torch finds no GPU, got cuda" in capsys.readouterr().err


def test_results_are_written_and_read_again(tmp_path):
    import reporting

    parser = reporting.make_parser("About.", seconds=2.0)
    words = ["--out", str(tmp_path / "new")]

    def table(result):
        return "\n".join(reporting.markdown_table(["value", "date"], [(result["value"], result["date"])]))

    reporting.finish("example", reporting.parse(parser, words), lambda options: {"value": options.seconds}, table)
    text = (tmp_path / "new" / "example.md").read_text()
    assert text.startswith("| value | date |\n|---|---|\n| 2.0 | 20")
    (tmp_path / "new" / "example.md").unlink()
    reporting.finish("example", reporting.parse(parser, [*words, "--report"]), None, table)
    assert (tmp_path / "new" / "example.md").read_text() == text
