"""benchmarks/gpu_campaign.sh: its stages, the archive of runs between calls, and a stage on the CPU."""

import json
import os
import signal
import time

import gpu_stand_ins
import pytest
import torch
from gpu_stand_ins import BENCHMARKS
from training_cases import PassesAfter, checkpoint

import echo_ext
from echo_ext import cli, training
from echo_ext.training import Configuration, RunDirectory

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def archive():
    import campaign_archive

    return campaign_archive


@pytest.fixture
def campaign():
    import gpu_campaign

    return gpu_campaign


# ---- Stages ----------------------------------------------------------------------------------------------------------


def test_sweeps_of_every_stage_can_be_configured(campaign):
    from echo_ext.cli.train import settings

    parser = cli._parser()
    for name, stage in campaign.STAGES.items():
        trained = set()
        for sweeps in stage.lanes.values():
            for words in sweeps:
                arguments = parser.parse_args(["sweep", *words, "--out", "runs", "--jobs", "3", "--time-limit", "9m"])
                for recipe in arguments.recipe:
                    for beta in map(float, arguments.beta.split(",")):
                        Configuration.of(**{**settings(arguments), "recipe": recipe, "beta": beta})
                trained |= set(arguments.recipe)
        assert set(stage.measured) <= trained, name
        parser.parse_args(["evaluate", "run", *stage.evaluation])


def test_stages_train_what_has_published_values(campaign):
    published = json.loads((BENCHMARKS / "published.json").read_text())
    for name in ("table1", "table2", "mim-images"):
        lanes = campaign.STAGES[name].lanes
        assert lanes.keys() == published[name].keys() - {"quantities"}
        for data, sweeps in lanes.items():
            words = {word for sweep in sweeps for word in sweep}
            assert set(published[name][data]) <= words, (name, data)
    # The rate and the distortion add up to the -ELBO, but for the rounding and for the extreme runs, which the paper
    # leaves out of each mean by itself.
    for data in campaign.STAGES["table1"].lanes:
        for rate, distortion, neg_elbo in published["table1"][data].values():
            assert abs(rate + distortion - neg_elbo) < 0.25


# ---- The archive -----------------------------------------------------------------------------------------------------

SMALL = {"limit": 100, "latent_dim": 2, "model_settings": {"hidden": [8]}}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished runs and one that was stopped in its second epoch."""
    monkeypatch.setattr("echo_ext.training.evaluation.write_figures", lambda *_: None)
    monkeypatch.setattr("echo_ext.training.running.MINIMUM_SECONDS", -1.0)
    root = tmp_path / "runs"
    for seed in (0, 1):
        training.train(Configuration.of("vae", "digits", seed=seed, epochs=2, **SMALL), root / "a" / f"seed{seed}")

    configuration = Configuration.of("vae", "digits", epochs=4, patience=4, **{**SMALL, "limit": 200})
    with pytest.raises(training.TimeLimitReached):
        training.train(configuration, root / "b" / "stopped", deadline=PassesAfter(2))
    (root / "b" / "stopped" / ".part-left").mkdir()
    (root / "b" / "stopped" / ".part-left" / "config.yaml").write_text("half")
    (root / "a" / "seed0" / "samples.png").write_bytes(os.urandom(5000))
    return root


def files_of(root):
    """The files below a folder, except those that are still being written."""
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and ".part-" not in str(file)}


def test_archive_restores_every_run(tmp_path, archive, runs):
    manifest = archive.pack(runs, tmp_path / "out", commit="abc")
    assert manifest["left_out"] == []
    assert archive.unpack(tmp_path / "out", tmp_path / "new") == 3
    # The best weights are there only where they are those of the model.
    assert files_of(runs) - files_of(tmp_path / "new") == {"a/seed0/best.ckpt", "a/seed1/best.ckpt"}
    configuration = RunDirectory(runs / "b" / "stopped").configuration()
    alone, resumed = (
        training.train(configuration, root / "b" / "stopped", resume=True) for root in (runs, tmp_path / "new")
    )
    assert resumed == {**alone, "seconds": resumed["seconds"]}
    # Of a finished run all but the optimizer's state is there.
    left, right = (checkpoint(root / "a" / "seed0") for root in (runs, tmp_path / "new"))
    assert left.keys() - right.keys() == {"optimizer"}
    assert all(torch.equal(left["state_dict"][name], right["state_dict"][name]) for name in left["state_dict"])


def test_archive_has_the_best_weights_of_a_finished_run(tmp_path, archive, runs):
    training.train(RunDirectory(runs / "b" / "stopped").configuration(), runs / "b" / "stopped", resume=True)
    archive.pack(runs, tmp_path / "out")
    archive.unpack(tmp_path / "out", tmp_path / "new")
    left, right = (training.load(root / "b" / "stopped") for root in (runs, tmp_path / "new"))
    assert left.history == right.history
    assert all(map(torch.equal, left.model.parameters(), right.model.parameters()))


def test_the_least_valuable_files_are_left_out_first(tmp_path, archive, runs):
    sizes = {file: (runs / file).stat().st_size for file in files_of(runs)}
    weights = len(archive.weights_only(runs / "a" / "seed0" / "last.ckpt"))
    results = sum(size for file, size in sizes.items() if file.startswith("a/") and not file.endswith(("ckpt", "png")))
    stopped = [f"b/stopped/{name}" for name in ("config.yaml", "last.ckpt", "metrics.csv", "best.ckpt")]
    unfinished = sum(sizes[file] for file in stopped)
    room = results + unfinished + sizes["a/seed0/samples.png"] + 2048 * 13
    for limit, left_out in (
        ((room + weights) / 0.99, ["a/seed1/last.ckpt"]),
        (room / 0.99, ["a/seed0/last.ckpt", "a/seed1/last.ckpt"]),
        ((results + 2048 * 7) / 0.99, [*stopped, "a/seed0/samples.png", "a/seed0/last.ckpt", "a/seed1/last.ckpt"]),
    ):
        manifest = archive.pack(runs, tmp_path / "out", limit=int(limit), part_limit=10_000)
        assert manifest["left_out"] == left_out
        parts = sorted((tmp_path / "out").glob("runs.tar.gz.*"))
        assert [part.name for part in parts] == sorted(part["name"] for part in manifest["parts"])
        assert all(part.stat().st_size <= 10_000 for part in parts)
        assert sum(part.stat().st_size for part in parts) <= limit
    # Results alone come back too, and a run without weights counts as finished.
    assert archive.unpack(tmp_path / "out", tmp_path / "new") == 2
    assert RunDirectory(tmp_path / "new" / "a" / "seed1").result() == RunDirectory(runs / "a" / "seed1").result()


def test_damaged_result_is_left_out_of_archive_and_table(tmp_path, archive, runs):
    import campaign_report

    (runs / "a" / "seed0" / "result.json").write_text("")
    manifest = archive.pack(runs, tmp_path / "out")
    assert {"a/seed0/last.ckpt", "a/seed1/result.json"} <= manifest["kept"].keys()
    report = campaign_report.report("rehearsal", runs, {})
    assert [(row["folder"], row["seeds"]) for row in report["rows"]] == [("a", 1)]
    assert {run["run"] for run in report["unfinished"]} == {"a/seed0", "b/stopped"}


def test_report_has_a_row_for_each_model_setting(runs):
    import campaign_report

    for seed, setting in ((0, 8), (1, 16)):
        (runs / "a" / f"seed{seed}").rename(runs / "a" / f"vae-beta1-seed{seed}-hidden{setting}")
    report = campaign_report.report("rehearsal", runs, {})
    assert [(row["recipe"], row["seeds"]) for row in report["rows"]] == [("vae-hidden16", 1), ("vae-hidden8", 1)]


def test_archive_does_not_replace_newer_runs(tmp_path, archive, runs):
    archive.pack(runs, tmp_path / "out")
    stopped = runs / "b" / "stopped"
    configuration = RunDirectory(stopped).configuration()
    training.train(configuration, stopped, resume=True)
    before = {file: (runs / file).stat().st_mtime_ns for file in files_of(runs)}
    assert archive.unpack(tmp_path / "out", runs) == 0
    assert {file: (runs / file).stat().st_mtime_ns for file in files_of(runs)} == before


def test_damaged_archive_is_refused_and_changes_nothing(tmp_path, archive, runs):
    out = tmp_path / "out"
    archive.pack(runs, out, part_limit=10_000)
    manifest, part = out / "manifest.json", out / "runs.tar.gz.1"
    whole, text = part.read_bytes(), manifest.read_text()

    def refuse(match):
        with pytest.raises(archive.ArchiveError, match=match) as caught:
            archive.unpack(out, tmp_path / "new")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()

    part.write_bytes(whole[:-1])
    refuse(r"is damaged: runs.tar.gz.1 has 9999 bytes of other content, where 10000 were written")
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuse(r"is damaged: runs.tar.gz.1 has 10000 bytes of other content")
    part.unlink()
    refuse(r"is damaged: runs.tar.gz.1 is missing")
    part.write_bytes(whole)
    manifest.write_text(text[: len(text) // 2])
    refuse(r"is damaged: manifest.json is not a manifest")
    manifest.write_text(json.dumps({**json.loads(text), "format": 2}))
    refuse(r"must be of format 1, got 2")
    manifest.write_text(json.dumps({**json.loads(text), "echo_ext": "0.0.1"}))
    refuse(rf"must be of echo-ext {echo_ext.__version__}, got 0.0.1")
    manifest.write_text(text)
    assert archive.unpack(out, tmp_path / "new") == 3


# ---- A stage from start to end ---------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    machine = gpu_stand_ins.Machine(tmp_path, echo_ext._C.__file__)
    machine.environment["ECHO_EXT_CAMPAIGN_WORK"] = str(tmp_path / "work")
    return machine


CPU = ("rehearsal", "--device", "cpu", "--jobs", "2")
MOST_FILES = 8


@pytest.mark.slow
def test_stage_continues_the_last_call(machine, tmp_path):
    """Each call on a machine of its own, which has nothing but the archive of the call before."""
    more = ("--", "--epochs", "300", "--limit", "300", "--set", "num_terms=20")
    calls, given, epochs = 0, (), []
    while not epochs or epochs[-1] < 8 * 300:
        calls += 1
        assert calls < 20
        seconds = "20" if calls == 1 else "40"  # the first is too short for all
        out = tmp_path / f"out{calls}"
        done = machine.run(
            "gpu_campaign.sh", *CPU, "--seconds", seconds, "--out", str(out), *given, *more,
            ECHO_EXT_CAMPAIGN_WORK=str(tmp_path / f"work{calls}"), ECHO_EXT_CAMPAIGN_SECONDS="100",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list(out.iterdir())) <= MOST_FILES
        report = json.loads((out / "campaign.json").read_text())
        epochs.append(
            sum(run["epochs"] for run in report["unfinished"]) + 300 * sum(row["seeds"] for row in report["rows"])
        )
        assert report["commit"] == "abc1234"
        assert (report["runs_advanced"] > 0) == (epochs[-1] > max(epochs[:-1], default=0))
        given = ("--archive", str(out))
    assert calls > 1
    assert epochs == sorted(epochs)


def test_terminated_stage_still_packs(machine, tmp_path):
    out = tmp_path / "out"
    process = machine.start("gpu_campaign.sh", *CPU, "--out", str(out), "--", "--epochs", "100000")
    work = tmp_path / "work" / "rehearsal"
    until = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < until:
        if any(name.endswith("last.ckpt") for name in files_of(work)):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=100)
    assert process.returncode == 0, printed + errors
    assert "runs are not finished" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert [name for name in manifest["kept"] if name.endswith("last.ckpt")]
    assert len(list(out.iterdir())) <= MOST_FILES


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("table1", "--device", "cuda"), "--device must be a device that can be used, got 'cuda': "),
        (("table1", "--device", "cpu", "--archive", "{damaged}"), "is damaged: manifest.json is not a manifest"),
        (("table9",), "argument STAGE: invalid choice: 'table9'"),
        (("table1", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("table1", "--seconds", "0"), "--seconds must be positive, got 0"),
        (("table1", "--betas", "1"), "unrecognized arguments: --betas 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capfd, tmp_path, monkeypatch, campaign, words, complaint):
    if torch.cuda.is_available() and "cuda" in words:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("[")
    try:
        code = campaign.main([word.format(damaged=damaged) for word in words])
    except SystemExit as stop:
        code = stop.code
    errors = capfd.readouterr().err
    assert code == 2
    assert complaint in errors
    assert errors.startswith("gpu_campaign: ")
    assert errors.count("\n") == 1
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [damaged / "manifest.json"]


@pytest.mark.parametrize("works", [True, False])
def test_graphs_are_tried_on_a_small_run(tmp_path, monkeypatch, campaign, works):
    options = campaign.read_options(["rehearsal", "--device", "cpu", "--out", str(tmp_path), "--work", str(tmp_path)])
    call = campaign.Campaign(options, time.monotonic())
    if not works:
        monkeypatch.setattr(campaign, "SMALL_RUN", ("--recipe", "captured", "--data", "digits"))
    call.try_graphs()
    call.log.close()
    assert call.graph_options == ([] if works else ["--no-cuda-graph"])
    assert len(call.failures) == (0 if works else 1)
    assert [file.name for file in tmp_path.iterdir()] == ["campaign.log"]


# ---- The GPU, by stand-ins -------------------------------------------------------------------------------------------


def test_the_load_is_sampled(machine, monkeypatch, campaign):
    monkeypatch.setenv("PATH", machine.environment["PATH"])
    with campaign.sampled_load("cuda") as load:
        until = time.monotonic() + 30
        while len(load.busy) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    described = load.describe()
    assert (described["gpu_busy_percent"], described["gpu_memory_mib"]) == (90, 1000)
    assert described["gpu_samples"] >= 2
    with campaign.sampled_load("cpu") as load:
        pass
    assert load.describe() == {"gpu_busy_percent": None}


def test_mps_is_used_where_it_works_and_ended(machine, tmp_path, monkeypatch, campaign):
    monkeypatch.setenv("PATH", machine.environment["PATH"])
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "")  # so that the test puts back what the campaign sets
    monkeypatch.setenv("CUDA_MPS_LOG_DIRECTORY", "")
    with campaign.shared_device("cuda", tmp_path) as how:
        assert how == "in time slices: there is no nvidia-cuda-mps-control"
    calls = tmp_path / "calls"
    machine.install("nvidia-cuda-mps-control", f"if [ $# -gt 0 ]; then echo $1; else cat; fi >> {calls}")
    monkeypatch.setattr(campaign, "SUM", "import sys; sys.exit(1)")
    with campaign.shared_device("cuda", tmp_path) as how:
        assert how == "in time slices: MPS does not work here (CalledProcessError)"
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert calls.read_text() == "-d\nquit\n"
    monkeypatch.setattr(campaign, "SUM", "")
    with campaign.shared_device("cuda", tmp_path) as how:
        assert how == "by MPS"
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps-pipe")
        assert calls.read_text() == "-d\nquit\n-d\n"
    assert calls.read_text() == "-d\nquit\n-d\nquit\n"


def test_tables_put_published_values_next_to_ours(campaign):
    from campaign_report import cell

    published = {"rate": 26.2, "distortion": 63.6, "neg_elbo": 89.8}
    bound = {"rate_bound": {"mean": 26.0, "standard_error": 0.25}, "published": published}
    assert [cell(bound, name) for name in ("rate", "rate_bound", "distortion")] == [
        "",
        "26.00 ± 0.25 (26.2)",
        "- (63.6)",
    ]
    exact = {"rate": {"mean": 26.0, "standard_error": None}, "published": published}
    assert [cell(exact, name) for name in ("rate", "rate_bound", "mig")] == ["26.00 (26.2)", "", ""]


def test_rebuilt_data_sets_are_named(tmp_path, campaign):
    for folder, file in (("omniglot", "omniglot28_rebuilt.npz"), ("binary-mnist", "binarized_mnist.npz")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    assert campaign.rebuilt_data("table1", tmp_path) == ["omniglot"]
