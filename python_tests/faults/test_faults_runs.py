"""Training runs that are killed, race for one folder, or fill the disk: no data are lost, mixed or left over."""

import os
import random
import re
import shutil
import signal
import sys
import time

import pytest
from training_cases import checkpoint, same

from echo_ext import training
from echo_ext.training import RunDirectory

if not hasattr(os, "fork"):
    pytest.skip("the processes of these tests are forked", allow_module_level=True)
for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

from forking import Commands  # noqa: E402  # needs fork

FILES = {"config.yaml", "best.ckpt", "last.ckpt", "metrics.csv", "result.json"}
TRAIN = ("train", "--recipe", "echo", "--data", "digits", "--limit", "150", "--binarization", "dynamic")
TRAIN += ("--set", "num_terms=20", "--set", "hidden=[8]", "--epochs", "30")
HELD = (
    r"echo-ext train: error: {out} is in use by process {pid} on \S+ since [-0-9]+ [:0-9]+; wait until .* has ended\n"
)
LATE = (
    r"echo-ext train: error: {out} contains (this run already; resume it \(--resume\) or|another run, with .*;) "
    r"choose another folder\n"
)


def settings(seed, beta=1.0, latent_dim=2):
    return ("--seed", seed, "--beta", beta, "--latent-dim", latent_dim)


VARIANTS = [settings(0), settings(1), settings(0, beta=0.5), settings(0, latent_dim=3)]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as commands:
        commands.run()  # returns once everything is imported
        yield commands


@pytest.fixture(scope="module")
def alone(commands, tmp_path_factory):
    """One undisturbed run of each variant, and the mean number of seconds that one takes."""
    folder = tmp_path_factory.mktemp("alone")
    start = time.monotonic()
    for index, variant in enumerate(VARIANTS):
        (ended,) = commands.run([*TRAIN, *variant, "--out", folder / str(index)])
        assert (ended.code, ended.errors) == (0, "")
    return folder, (time.monotonic() - start) / len(VARIANTS)


@pytest.fixture
def seeded(request):
    """Random numbers whose seed is printed if a test fails, so that it can be repeated."""
    seed = int(os.environ.get("ECHO_EXT_FAULT_SEED", random.SystemRandom().randrange(2**31)))
    print(f"ECHO_EXT_FAULT_SEED={seed}")
    return random.Random(seed)


def assert_same_run(left, right):
    assert {file.name for file in left.iterdir()} == FILES
    for name in ("last.ckpt", "best.ckpt"):
        assert same(checkpoint(left, name), checkpoint(right, name))
    results = [{**RunDirectory(path).result(), "seconds": None} for path in (left, right)]
    assert results[0] == results[1]


def assert_whole(out):
    """Check that every existing file can be read."""
    directory = RunDirectory(out)
    if not directory.holds_run:
        assert not directory.has_checkpoint
        assert not directory.has_result
        return
    configuration = directory.configuration()
    if directory.has_checkpoint:
        directory.load_checkpoint(configuration)
    if directory.has_result:
        directory.result()


def came_late(loser, out):
    """Whether a run was refused because the folder already contained a finished run."""
    if not re.fullmatch(LATE.format(out=re.escape(str(out))), loser.errors):
        return False
    assert loser.at >= (out / "result.json").stat().st_mtime_ns
    return True


def assert_held(loser, out, *owners):
    """Check that a run was refused because one of these processes owned the folder."""
    words = {"out": re.escape(str(out)), "pid": f"({'|'.join(str(owner) for owner in owners)})"}
    assert re.fullmatch(HELD.format(**words), loser.errors), loser.errors


def finish(commands, out, variant):
    resume = RunDirectory(out).holds_run
    (ended,) = commands.run([*TRAIN, *variant, "--out", out, *(["--resume"] if resume else [])])
    assert (ended.code, ended.errors) == (0, "")


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.faults)])
def test_killed_runs_resume_bit_equal_without_leftovers(commands, alone, tmp_path, seeded, kills):
    folder, seconds = alone
    done = runs = 0
    left_over = 0
    while done < kills:
        variant = seeded.randrange(len(VARIANTS))
        out = tmp_path / str(runs)
        for _ in range(seeded.randint(1, 4)):
            resume = ["--resume"] if RunDirectory(out).holds_run else []
            running = commands.start([*TRAIN, *VARIANTS[variant], "--out", out, *resume])
            ended = commands.kill(running, after=seeded.uniform(0, seconds))
            assert ended.code in (0, -signal.SIGKILL), ended.errors
            assert_whole(out)
            left_over += any(out.glob(".part-*"))
            done += ended.code != 0
        finish(commands, out, VARIANTS[variant])
        assert_same_run(out, folder / str(variant))
        runs += 1
    print(f"{done} kills in {runs} runs, {left_over} of them within a write")


@pytest.mark.parametrize("races", [2, pytest.param(100, marks=pytest.mark.faults)])
def test_only_one_of_concurrent_runs_starts(commands, alone, tmp_path, seeded, races):
    folder, _ = alone
    late = 0
    for race in range(races):
        out = tmp_path / str(race)
        variants = seeded.sample(range(len(VARIANTS)), seeded.randint(2, 3))
        ended = commands.run(*[[*TRAIN, *VARIANTS[variant], "--out", out] for variant in variants])
        (winner,) = (index for index, each in enumerate(ended) if each.code == 0)
        assert ended[winner].errors == ""
        losers = [each for index, each in enumerate(ended) if index != winner]
        late_losers = [each for each in losers if came_late(each, out)]
        for loser in losers:
            assert loser.code == 2
            if loser not in late_losers:
                # A late process owns the folder too, for as long as it looks at its content.
                assert_held(loser, out, ended[winner].pid, *(each.pid for each in late_losers))
        late += len(late_losers)
        assert_same_run(out, folder / str(variants[winner]))
    print(f"{races} races, in which {late} runs started after the other had ended")


@pytest.mark.parametrize("races", [1, pytest.param(30, marks=pytest.mark.faults)])
def test_only_one_of_concurrent_resumes_starts(commands, alone, tmp_path, seeded, races):
    folder, seconds = alone
    for race in range(races):
        out = tmp_path / str(race)
        running = commands.start([*TRAIN, *VARIANTS[0], "--out", out])
        wait_for(out / "config.yaml")
        commands.kill(running, after=seeded.uniform(0, 0.3) * seconds)
        ended = commands.run(*[["train", "--resume", "--out", out]] * 2)
        winner, loser = sorted(ended, key=lambda each: each.code)
        assert winner.code == 0
        assert loser.code in (0, 2)  # resuming a finished run succeeds and has no effect
        if loser.code == 2:
            assert_held(loser, out, winner.pid)
        assert_same_run(out, folder / "0")


def test_run_in_training_can_be_evaluated_but_not_resumed(commands, alone, tmp_path):
    folder, _ = alone
    out = tmp_path / "run"
    running = commands.start([*TRAIN, *VARIANTS[0], "--out", out])
    wait_for(out / "metrics.csv")
    os.kill(running[0][0], signal.SIGSTOP)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert "run.lock" in before
    again = [*TRAIN, *VARIANTS[0], "--out", out]
    for refused in commands.run(["train", "--resume", "--out", out], again, [*again, *VARIANTS[1]]):
        assert refused.code == 2
        assert_held(refused, out, running[0][0])
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    (evaluated,) = commands.run(["evaluate", out, "--draws", 1])
    assert (evaluated.code, evaluated.errors) == (0, "")
    os.kill(running[0][0], signal.SIGCONT)
    (ended,) = commands.wait(running)
    assert (ended.code, ended.errors) == (0, "")
    for file in ("evaluation.json", "marginal_activations.png", "rate_against_activation.png"):
        (out / file).unlink()
    assert_same_run(out, folder / "0")


@pytest.mark.parametrize("races", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_concurrent_sweeps_of_one_folder_share_the_runs(commands, tmp_path, races):
    grid = ("sweep", *TRAIN[1:], "--beta", "0.5,1,2")
    for race in range(races):
        out = tmp_path / str(race)
        ended = commands.run([*grid, "--out", out], [*grid, "--out", out])
        for sweep in ended:
            assert sweep.code in (0, 1)
            if sweep.code:
                assert sweep.errors.count("\n") == 1
                assert "is in use by process" in sweep.errors or "contains this run already" in sweep.errors
        names = [f"echo-beta{beta}-seed0" for beta in ("0.5", "1", "2")]
        tables = {"table.csv", "table.json", "equal_rate.csv"}
        assert {path.name for path in out.iterdir()} == {*names, *tables, "rate_distortion.png"}
        for name in names:
            assert {file.name for file in (out / name).iterdir()} == FILES
            training.load(out / name)
        (again,) = commands.run([*grid, "--out", out])
        assert (again.code, again.errors) == (0, "")
        assert (out / "table.csv").read_text().count("\n") == 4


def test_full_disk_keeps_the_previous_checkpoint(commands, alone, tmp_path):
    folder, _ = alone
    # The history grows with every epoch, and with it the file.
    sizes = [(folder / "0" / "last.ckpt").stat().st_size - shrink for shrink in (1, 2000)]
    for index, size in enumerate(sizes):
        out = tmp_path / str(index)
        (ended,) = commands.run([*TRAIN, *VARIANTS[0], "--out", out], file_size=size)
        assert ended.code == 1
        assert re.search(
            r"checkpoint of epoch \d+ could not be written .* File too large; the previous one", ended.errors
        )
        assert ended.errors.count("\n") == 1
        assert_whole(out)
        assert {file.name for file in out.iterdir()} == FILES - {"result.json"}
        finish(commands, out, VARIANTS[0])
        assert_same_run(out, folder / "0")
    (ended,) = commands.run([*TRAIN, *VARIANTS[0], "--out", tmp_path / "tiny"], file_size=300)
    assert ended.code == 2
    assert re.search(r"tiny is not writable: File too large\n$", ended.errors)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.skipif(
    os.getuid() == 0 and sys.platform != "linux", reason="only on Linux can root give up its file permissions"
)
def test_read_only_folder_is_refused_in_one_line(commands, alone, tmp_path):
    folder, _ = alone
    out = tmp_path / "run"
    shutil.copytree(folder / "0", out)
    (out / "result.json").unlink()
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    out.chmod(0o555)
    try:
        calls = [["train", "--resume", "--out", out], [*TRAIN, *VARIANTS[0], "--out", out / "below"]]
        for ended in commands.run(*calls, obeys_modes=True):
            assert ended.code == 2, ended.errors
            assert re.fullmatch(
                r"echo-ext train: error: --out must be writable, got \S+: Permission denied\n", ended.errors
            )
        assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    finally:
        out.chmod(0o755)
    (out / "file").write_text("")
    (ended,) = commands.run([*TRAIN, *VARIANTS[0], "--out", out / "file" / "run"])
    assert ended.code == 2
    assert ended.errors.count("\n") == 1


def wait_for(file, seconds=60.0):
    until = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.002)
