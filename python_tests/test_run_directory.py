"""The folder of a run: its owner, its checksums, and damaged or hostile files."""

import io
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from training_cases import checkpoint, same

from echo_ext import _checks, _files, _parsing, cli, training
from echo_ext.training import Configuration, RunDirectory, checkpoints, ownership, running

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "limit": 100,
    "epochs": 2,
    "latent_dim": 2,
    "model_settings": {"hidden": [4], "num_terms": 10, "bank_size": 10},
}
CONFIGURATION = Configuration.of("echo", "digits", **SETTINGS)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a finished run, by name."""
    path = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(running.evaluation, "write_figures", lambda *_: None)
        training.train(CONFIGURATION, path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def run(finished, tmp_path):
    """A folder with a copy of the finished run."""
    path = tmp_path / "run"
    path.mkdir()
    for name, content in finished.items():
        (path / name).write_bytes(content)
    return path


def fail(capsys, *argv):
    """Run a command that fails with exit code 2; return its one line on stderr."""
    assert cli.main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert len(captured.err) < 1000
    return captured.err


# ---- The owner -------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from echo_ext.training import ownership
with ownership.owned(Path(sys.argv[1]), "run.lock"):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_owner(tmp_path):
    """Another process that owns ``tmp_path/run``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent) as process:
        assert process.stdout.readline() == b"owned\n"
        yield process
        process.kill()


def test_folder_has_one_owner_until_it_is_killed(tmp_path, other_owner, capsys):
    path = tmp_path / "run"
    held = rf"run is in use by process {other_owner.pid} on \S+ since \S+ \S+; wait until it has ended"
    with pytest.raises(FileExistsError, match=held), RunDirectory(path).owned():
        pass
    with pytest.raises(FileExistsError, match=held):
        training.train(CONFIGURATION, path)
    assert {file.name for file in path.iterdir()} == {"run.lock", "run.owner"}
    line = fail(capsys, "train", "--recipe", "vae", "--data", "digits", "--out", path)
    assert f"is in use by process {other_owner.pid} on" in line
    other_owner.kill()
    other_owner.wait()
    assert (path / "run.lock").exists()
    training.train(CONFIGURATION, path)
    assert not (path / "run.lock").exists()
    assert not (path / "run.owner").exists()


def test_run_in_use_is_not_changed_by_a_resume(run, other_owner):
    (run / "result.json").unlink()
    (run / ".part-of-its-owner").mkdir()
    before = {file.name: file.stat().st_mtime_ns for file in run.iterdir()}
    with pytest.raises(FileExistsError, match=f"is in use by process {other_owner.pid} on"):
        training.train(CONFIGURATION, run, resume=True)
    RunDirectory(run).remove_leftovers()
    assert {file.name: file.stat().st_mtime_ns for file in run.iterdir()} == before


def test_second_owner_in_one_process_is_refused(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.owned():
        with pytest.raises(FileExistsError, match=f"is in use by process {os.getpid()} on"), directory.owned():
            pass
        with RunDirectory(tmp_path / "run", task="evaluation").owned():
            assert {file.name for file in directory.path.iterdir()} == {
                f"{task}.{kind}" for task in ("run", "evaluation") for kind in ("lock", "owner")
            }
    assert not directory.path.exists()


def test_owner_is_named_once_its_record_is_written(tmp_path):
    with ownership.owned(tmp_path, "run.lock"):
        record = (tmp_path / "run.owner").read_text()
        (tmp_path / "run.owner").write_text("")
        writer = threading.Timer(0.75, (tmp_path / "run.owner").write_text, [record])
        writer.start()
        with pytest.raises(FileExistsError, match=f"in use by process {os.getpid()} on "):
            RunDirectory(tmp_path).refuse_owned()
        writer.join()
        (tmp_path / "run.owner").write_text("damaged")
        with pytest.raises(FileExistsError, match="in use by another process;"):
            RunDirectory(tmp_path).refuse_owned()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_does_not_keep_the_lock(tmp_path):
    gate, opener = os.pipe()
    with ownership.owned(tmp_path, "run.lock"):
        child = os.fork()
        if child == 0:
            os.close(opener)
            os.read(gate, 1)  # outlives the owner
            os._exit(0)
        os.close(gate)
    with ownership.owned(tmp_path, "run.lock"):
        pass
    os.close(opener)
    os.waitpid(child, 0)


def test_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.owner").symlink_to(tmp_path / "mine")
    with RunDirectory(tmp_path / "run").owned():
        pass
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="run is not writable: "), RunDirectory(tmp_path / "run").owned():
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(ownership.errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ValueError, match="is on a file system without locks: No locks available"):
        training.train(CONFIGURATION, tmp_path / "run")


def test_run_begins_only_once_even_without_a_lock(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIGURATION)
    with pytest.raises(FileExistsError):
        _files.create(tmp_path / "config.yaml", b"another")
    assert directory.configuration() == CONFIGURATION
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_leftovers_are_removed_by_the_next_owner(run):
    for name in (".part-left", ".evaluation.part-left"):
        (run / name).mkdir()
        (run / name / "last.ckpt").write_bytes(b"half")
    training.train(CONFIGURATION, run, resume=True)
    assert not (run / ".part-left").exists()
    training.evaluate(run)
    assert not (run / ".evaluation.part-left").exists()


# ---- Results ---------------------------------------------------------------------------------------------------------


def broken_results(result):
    yield "", "Expecting value"
    yield "{}", "'recipe' is missing in it"
    yield "[]", "it must be of type dict, got type list"
    yield json.dumps({**result, "beta": 7.0}), "it belongs to another run, with beta 7.0, not 1.0"
    yield json.dumps({**result, "rate": "much"}), "rate must be of type int or float, got type str"
    yield (
        json.dumps({name: value for name, value in result.items() if name != "neg_elbo"}),
        "'neg_elbo' is missing in it",
    )
    yield json.dumps({**result, "rows": 5}), "rows must be of type dict, got type int"
    yield "[" * 200_000, "it is nested too deeply"
    yield json.dumps({**result, "note": "x" * 2**21}), "it has more than 1048576 bytes"


def test_resume_evaluates_again_after_a_broken_result(run):
    whole = RunDirectory(run).result()
    weights = checkpoint(run)
    for text, complaint in broken_results(whole):
        (run / "result.json").write_text(text)
        assert not RunDirectory(run).is_finished
        with pytest.raises(ValueError, match=f"result.json is damaged: .*{complaint}"):
            RunDirectory(run).result()
    for text in ("{}", "[" * 200_000):
        (run / "result.json").write_text(text)
        assert training.train(CONFIGURATION, run, resume=True) == {**whole}
        assert same(checkpoint(run), weights)


def test_sweep_reports_broken_results_and_continues(tmp_path, capsys):
    words = ["sweep", "--recipe", "vae", "--data", "digits", "--beta", "1", "--out", str(tmp_path), "--limit", "100"]
    words += ["--epochs", "1", "--set", "hidden=[4]", "--seeds"]
    assert cli.main([*words, "0,1,2"]) == 0
    (tmp_path / "vae-beta1-seed0" / "result.json").write_text("{}")
    (tmp_path / "vae-beta1-seed1" / "config.yaml").write_text("[" * 50_000)
    capsys.readouterr()
    assert cli.main([*words, "0,1,2,3"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "2 of 4 runs failed; the first error is that of vae-beta1-seed0: ValueError: " in captured.err
    assert "result.json is damaged: 'recipe' is missing in it" in captured.err
    assert "vae-beta1-seed3: -ELBO" in captured.out
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("vae,1.0,2,")


# ---- Checkpoints -----------------------------------------------------------------------------------------------------


def assert_refused(file):
    with pytest.raises(ValueError, match=r"last.ckpt is damaged|last.ckpt is not a checkpoint of echo-ext"):
        checkpoints.read(file, CONFIGURATION)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.faults)])
def test_every_flipped_bit_and_every_truncation_is_refused(run, step):
    file = run / "last.ckpt"
    whole = file.read_bytes()
    assert checkpoints.read(file, CONFIGURATION)["finished"]
    ends = range(8 * (len(whole) - 200), 8 * len(whole))  # the end of the archive, its mark and its checksum
    with file.open("r+b", buffering=0) as opened:
        for bit in [*range(0, ends.start, 8 * step - 1), *ends]:
            place = bit // 8
            opened.seek(place)
            opened.write(bytes([whole[place] ^ 1 << bit % 8]))
            assert_refused(file)
            opened.seek(place)
            opened.write(whole[place : place + 1])
        assert checkpoints.read(file, CONFIGURATION)["finished"]
        for length in [*range(len(whole) - 1, len(whole) - 200, -1), *range(0, len(whole) - 200, 101 * step)]:
            file.write_bytes(whole[:length])
            assert_refused(file)
    file.write_bytes(whole + b"\0")
    assert_refused(file)


def test_checkpoint_loads_with_plain_torch(run):
    content = torch.load(run / "last.ckpt", weights_only=True)
    assert same(content, checkpoints.read(run / "last.ckpt", CONFIGURATION))
    assert zipfile.ZipFile(run / "last.ckpt").testzip() is None


def deep(levels):
    content = []
    for _ in range(levels):
        content = [content]
    return content


def expanded(rows):
    return torch.zeros(1, 2).expand(rows, 2)


def hostile_checkpoints(whole):
    for name in (
        "format",
        "recipe",
        "model_settings",
        "epoch",
        "finished",
        "data_shape",
        "state_dict",
        "precision",
        "history",
    ):
        yield {key: value for key, value in whole.items() if key != name}
    yield {key: value for key, value in {**whole, "finished": False}.items() if key != "optimizer"}
    yield {**whole, "state_dict": None}
    yield {**whole, "history": 5}
    yield {**whole, "history": [{}] * 2}
    yield {**whole, "history": [{**whole["history"][0], "seconds": "long"}] * 2}
    yield {**whole, "history": deep(100)}
    yield {**whole, "data_shape": [2**40]}
    yield {**whole, "data_shape": [1] * 100_000}
    yield {**whole, "data_shape": "(1, 8, 8)"}
    yield {**whole, "epoch": 10**9}
    yield {**whole, "state_dict": {"x" * 10_000: torch.zeros(1)}}
    yield {**whole, "unfinished_epoch": 3}
    state = whole["state_dict"]
    bank = next(name for name in state if name.endswith("bank_f"))
    weight = next(name for name in state if name.endswith("weight"))
    yield {**whole, "state_dict": {**state, bank: expanded(2**40)}}
    yield {**whole, "state_dict": {**state, weight: expanded(2**40)}}
    yield {**whole, "state_dict": {**state, weight: state[weight][:1].clone()}}
    yield {**whole, "state_dict": {**state, weight: torch.zeros(2, 2).to_sparse()}}
    yield {**whole, "state_dict": {name: value for name, value in state.items() if name != weight}}


def test_hostile_checkpoints_end_in_one_line(run, capsys):
    (run / "result.json").unlink()
    whole = checkpoint(run)
    for content in hostile_checkpoints(whole):
        (run / "last.ckpt").write_bytes(checkpoints.dump(content))
        for words in (("train", "--resume", "--out", run), ("evaluate", run)):
            if words[0] == "train" and content.get("data_shape") == [2**40]:
                continue  # training uses the shape of its data
            start = time.monotonic()
            assert "checkpoint" in fail(capsys, *words)
            assert time.monotonic() - start < 60


def test_checkpoint_for_other_data_is_refused_by_name(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("data: digits", "data: gmm2d"))
    line = fail(capsys, "evaluate", run)
    assert "data 'gmm2d' must have shape (1, 8, 8) for the model in" in line
    assert "got (2,)" in line


def test_moments_of_another_optimizer_are_refused(run):
    (run / "result.json").unlink()
    whole = {**checkpoint(run), "finished": False}
    whole["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    RunDirectory(run).save_checkpoint(whole)
    with pytest.raises(ValueError, match="optimizer of the checkpoint cannot be restored: exp_avg does not have its"):
        training.train(CONFIGURATION, run, resume=True)


def test_compressed_archive_is_not_unpacked(run):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**28))
    content = bytearray(buffer.getvalue())
    content[-2:] = checkpoints._COMMENT.to_bytes(2, "little")
    content += checkpoints._MARK
    content += checkpoints.hashlib.sha256(content).hexdigest().encode()
    (run / "last.ckpt").write_bytes(content)
    tracemalloc.start()
    try:
        assert_refused(run / "last.ckpt")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


# ---- Configurations --------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(97 + level)}: &{chr(97 + level)} [{','.join([f'*{chr(96 + level)}'] * 10)}]\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"recipe: echo\ndata: digits\n{LAUGHS}seed: *j\n", "aliases are not allowed"),
        ("recipe: echo\ndata: digits\nseed: " + "[" * 50_000, "more than 16 levels"),
        ("recipe: echo\ndata: digits\nseed: " + "{a: " * 10_000, "more than 16 levels"),
        ("recipe: echo\ndata: digits\n" + "#" * 2**20, "it has more than 65536 bytes"),
        ("recipe: [echo]\ndata: digits\n", "recipe must be a string, got ['echo']"),
        ("recipe: echo\ndata: 5\n", "data must be a string, got 5"),
        ("recipe: echo\ndata: digits\nepochs: many\n", "epochs must be an int, got 'many'"),
        ("recipe: echo\ndata: digits\nseed: !!timestamp x\n", "it is not YAML"),
        ("recipe: echo\ndata: digits\nseed: 0x" + "f" * 60_000, "seed must be at most 4294967295, got"),
        ("recipe: echo\ndata: digits\nseed: [" + "a," * 30_000 + "]", "seed must be an int, got"),
        ("recipe: " + "e" * 60_000 + "\ndata: digits\n", "there is no recipe 'eeee"),
        ("recipe: echo\ndata: digits\n" + "s" * 900 + ": 1\n", "there is no setting 'ssss"),
        ("recipe: echo\ndata: digits\nmodel_settings: !!python/object/apply:os.system [exit]\n", "it is not YAML"),
        ("\x00", "is not the configuration of a run"),
        ("- 1", "a configuration must be a mapping, got [1]"),
    ],
)
def test_hostile_configurations_end_in_one_line(run, capsys, text, complaint):
    (run / "config.yaml").write_text(text)
    start = time.monotonic()
    for words in (("evaluate", run), ("train", "--resume", "--out", run)):
        assert complaint in fail(capsys, *words)
    assert time.monotonic() - start < 30


def test_deeply_nested_flag_is_refused(capsys, tmp_path):
    words = ("train", "--recipe", "vae", "--data", "digits", "--out", tmp_path / "run")
    line = fail(capsys, *words, "--set", "hidden=" + "[" * 50_000)
    assert "--set hidden must be YAML, got '[[[" in line


def test_yaml_and_json_within_the_limits_are_read(tmp_path):
    assert _parsing.parse_yaml("a: [1, {b: 2.5}]") == {"a": [1, {"b": 2.5}]}
    assert _parsing.parse_yaml("") is None
    (tmp_path / "file").write_text('{"a": [1, NaN]}')
    assert str(_parsing.read_json(tmp_path / "file")) == "{'a': [1, nan]}"


def test_values_are_shortened_in_errors():
    for value in ("a" * 10**6, [[["a"] * 10**5] * 10**5] * 10**5, 16**60_000, {1: {2: {3: {4: 5}}}}):
        assert len(_checks.brief(value)) <= 60
    assert _checks.brief(["short", 1]) == "['short', 1]"


# ---- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_part_without_rows_is_refused_by_name(tmp_path, monkeypatch, part):
    load = Configuration.load_data

    def without(self, data_dir):
        parts = load(self, data_dir)
        return {**parts, part: parts[part].select(slice(0))}

    monkeypatch.setattr(Configuration, "load_data", without)
    with pytest.raises(ValueError, match=f"data 'digits' must have at least 1 {part} rows, got 0"):
        training.train(CONFIGURATION, tmp_path / "run")
    assert not (tmp_path / "run").exists()
