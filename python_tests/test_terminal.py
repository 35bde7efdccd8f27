"""Terminal manners: progress, help, completion, and output that cannot be written or shown."""

import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from echo_ext import _progress, cli, data, models
from echo_ext._progress import progress, silenced

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "command_line.md"
COMMAND = [sys.executable, "-m", "echo_ext"]
WIDTHS = (40, 60, 100)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hurried(monkeypatch):
    """Lines of progress in hundredths of seconds rather than minutes."""
    monkeypatch.setattr(_progress, "FIRST_LINE", 0.02)
    monkeypatch.setattr(_progress, "LINE_INTERVAL", 0.1)


def set_width(terminal, columns):
    """Set the size of a pseudo-terminal, which is 0 at first."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))


class Terminal:
    """A pseudo-terminal of some width as stderr."""

    def __init__(self, monkeypatch, columns, encoding="utf-8"):
        pty = pytest.importorskip("pty")
        self._reader, writer = pty.openpty()
        set_width(writer, columns)
        self._stream = os.fdopen(writer, "w", encoding=encoding)
        self._read = b""
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()
        monkeypatch.setattr(sys, "stderr", self._stream)

    def _collect(self):
        try:
            while part := os.read(self._reader, 4096):
                self._read += part
        except OSError:  # no writer is left
            pass

    def lines(self):
        """What was shown, as often as it was drawn."""
        self._stream.close()
        self._thread.join()
        os.close(self._reader)
        drawn = re.sub(r"\x1b\[A", "\r", self._read.decode()).replace("\n", "\r").split("\r")
        return [line.rstrip() for line in drawn if line.strip()]


def work(steps=30, seconds=0.01):
    with progress("epoch 1/3", steps, "step", of="vae on digits", leave=None) as bar:
        for step in range(steps):
            time.sleep(seconds)
            bar.update()
            bar.set_postfix_str("validation loss 30.21 nats", refresh=False)
            bar.set_description_str(f"epoch {min(1 + 3 * (step + 1) // steps, 3)}/3", refresh=False)


# ---- Progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_bar_shows_epoch_and_remaining_time_in_any_terminal(monkeypatch, columns):
    terminal = Terminal(monkeypatch, columns)
    work(seconds=0.02)
    lines = terminal.lines()
    assert len(lines) > 3
    for line in lines:
        assert len(line) <= columns
        assert re.match(r"epoch [123]/3: \d+% \[00:0\d<(\?|00:0\d), ", line), line
    assert lines[-1].startswith("epoch 3/3: 100% ")
    assert ("█" in lines[-1]) == (columns > 80)
    assert "\x1b" not in "".join(lines)


def test_bar_ticks_while_the_work_reports_nothing(monkeypatch):
    monkeypatch.setattr(_progress, "TICK", 0.1)
    terminal = Terminal(monkeypatch, 60)
    with progress("figures", None):
        time.sleep(0.5)
    assert len([line for line in terminal.lines() if line.startswith("figures [00:0")]) >= 3


def test_bar_is_ascii_where_the_encoding_is(monkeypatch):
    terminal = Terminal(monkeypatch, 100, encoding="ascii")
    work()
    assert "####" in terminal.lines()[-1]


def test_inner_bar_is_removed(monkeypatch):
    terminal = Terminal(monkeypatch, 60)
    with progress("runs", 2, "run", leave=None) as outer:
        for _ in range(2):
            work(5)
            outer.update()
    assert terminal.lines()[-1].startswith("runs: 100% [")


def test_dumb_terminal_gets_lines(monkeypatch, hurried):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal(monkeypatch, 40)
    work()
    assert all(line.startswith("vae on digits, epoch ") for line in terminal.lines())


def test_log_shows_life(capsys, hurried):
    work(40)
    printed = capsys.readouterr().err
    lines = printed.splitlines()
    assert "\r" not in printed
    assert 3 <= len(lines) <= 12
    loss = r"(, validation loss 30\.21 nats)?"
    for line in lines:
        assert re.fullmatch(rf"vae on digits, epoch [123]/3: \d+% \[00:0\d<.*step/s{loss}\]", line)
    assert lines[-1].startswith("vae on digits, epoch 3/3: 100% ")


def test_log_is_never_silent_for_more_than_a_minute(monkeypatch):
    monkeypatch.undo()
    assert _progress.FIRST_LINE <= _progress.LINE_INTERVAL <= 60


def test_log_shows_life_while_the_work_reports_nothing(capsys, hurried):
    with progress("figures", None):
        time.sleep(0.35)
    assert capsys.readouterr().err.count("figures [00:00]\n") >= 2


def test_short_silenced_or_impossible_progress_prints_nothing(capsys, hurried, monkeypatch):
    monkeypatch.setattr(_progress, "FIRST_LINE", 60.0)
    work(3)
    monkeypatch.setattr(_progress, "FIRST_LINE", 0.001)
    with silenced(), silenced(False):
        work(3)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tqdm", None)
        work(3)
    assert capsys.readouterr().err == ""


def test_error_ends_the_progress(capsys, hurried):
    threads = threading.active_count()
    with pytest.raises(KeyError), progress("rows", 3, "row"):
        raise KeyError
    assert threading.active_count() <= threads + 1  # tqdm's own


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (("--matrix",), "pairs: 0% [00:00<?, 0/6, "),
        (("--x", "0,1", "--y", "2", "--matrix"), "pairs: 0% [00:00<?, 0/2, "),
        (("--x", "0", "--y", "1", "--lag", "5"), "lags: 0% [00:00<?, 0/6, "),
        (("--x", "0", "--y", "1", "--permutations", "20"), "permutations: 0% [00:00<?, 0/20, "),
        (("--matrix", "--permutations", "20"), "permutations: 0% [00:00<?, 0/20, "),
    ],
)
def test_mi_shows_progress(monkeypatch, capsys, words, label):
    np.save("a.npy", np.random.default_rng(0).standard_normal((60, 3)))
    terminal = Terminal(monkeypatch, 80)
    assert cli.main(["mi", "a.npy", *words]) == 0
    assert any(line.startswith(label) for line in terminal.lines())


def test_runs_show_progress_of_every_phase(monkeypatch, capsys, one_thread):
    for needed in ("lightning_fabric", "matplotlib", "pandas", "sklearn", "yaml"):
        pytest.importorskip(needed)
    quick = ["--recipe", "vae", "--data", "digits", "--epochs", "2", "--limit", "50", "--latent-dim", "2"]
    commands = {
        ("sweep", *quick, "--out", "s"): ("runs: 100% [", "epoch 2/2: 100% [", "test rows: "),
        ("evaluate", "s/vae-beta1-seed0"): ("codes of training rows: ", "figures [00:"),
        ("encode", "s/vae-beta1-seed0", "digits", "--part", "test", "--out", "c.npz"): ("rows encoded: ",),
        ("sample", "s/vae-beta1-seed0", "-n", "300"): ("samples: ",),
        ("demo", "--epochs", "1"): ("Echo: 100% [", "VAE: 100% ["),
    }
    monkeypatch.setattr(_progress, "TICK", 0.01)
    for words, labels in commands.items():
        with monkeypatch.context() as patched:
            terminal = Terminal(patched, 40)
            assert cli.main(list(words)) == 0
            lines = terminal.lines()
        for label in labels:
            assert any(line.startswith(label) for line in lines), (label, lines)
    assert "vae-beta1-seed0: -ELBO " in capsys.readouterr().out


# ---- Output that cannot be written or shown --------------------------------------------------------------------------


def run(*words, **options):
    environment = {**os.environ, **options.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*COMMAND, *words], env=environment, encoding="utf-8", cwd=HERE, timeout=60, **options)


def test_results_without_a_home_and_in_ascii(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    rows = np.random.default_rng(0).standard_normal((30, 2))
    lines = [",".join(map(str, row)) for row in rows]
    (tmp_path / "a.csv").write_text("\n".join(["größe,x", *lines]), encoding="utf-8")
    env = {"HOME": "/dev/null", "XDG_CACHE_HOME": "", "MPLCONFIGDIR": "/dev/null/x", "LC_ALL": "C"}
    env |= {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "PYTHONCOERCECLOCALE": "0"}
    file, plot = tmp_path / "a.csv", tmp_path / "new" / "a.png"
    done = run("mi", str(file), "--matrix", "--plot", str(plot), env=env)
    assert done.returncode == 0
    assert done.stderr == f"wrote {plot}\necho-ext mi: 30 rows from {file}, header in line 1\n"
    assert done.stdout.split()[:2] == [r"gr\xf6\xdfe", "x"]
    assert plot.is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["recipes"]) == 1
    expected = "echo-ext recipes: error: the output cannot be written: No space left on device (--debug shows where)\n"
    assert capsys.readouterr().err == expected


def test_interrupt_at_the_terminal_is_one_line(tmp_path):
    pytest.importorskip("tqdm")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((5000, 2)))
    pty = pytest.importorskip("pty")
    reader, writer = pty.openpty()
    set_width(writer, 60)
    words = ["mi", str(tmp_path / "a.npy"), "--x", "0", "--y", "1", "--permutations", "100000"]
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [*COMMAND, *words], stdout=writer, stderr=writer, stdin=writer, start_new_session=True, cwd=HERE, env=env
    ) as process:
        os.close(writer)
        shown = b""
        while b"permutations: 0% [" not in shown:
            shown += os.read(reader, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while part := os.read(reader, 4096):
                shown += part
        except OSError:  # the process has ended
            pass
    os.close(reader)
    assert process.returncode == 130
    assert shown.decode().replace("\r", "\n").rstrip().splitlines()[-1] == "echo-ext mi: interrupted"
    assert b"Traceback" not in shown


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_after_the_last_epoch_says_how_to_continue(monkeypatch, capsys, signum):
    pytest.importorskip("lightning_fabric")
    from echo_ext.training import evaluation

    words = ["train", "--recipe", "vae", "--data", "digits", "--epochs", "1", "--limit", "100", "--out", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "measure", lambda *_, **__: os.kill(os.getpid(), signum) or time.sleep(5))
        assert cli.main(words) == 130
    error = capsys.readouterr().err
    assert error == (
        "echo-ext train: interrupted; all epochs are saved; continue by: echo-ext train --resume --out run\n"
    )
    assert cli.main(["train", "--resume", "--out", "run"]) == 0
    assert "after 1 epoch in " in capsys.readouterr().out
    assert cli.main(["train", "--resume", "--out", "run"]) == 0
    assert "; the run was finished before; nothing was changed in run" in capsys.readouterr().out


def test_interrupt_while_arguments_are_read_is_one_line(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_parser", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "echo-ext: interrupted\n"


def test_closed_stdout_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["recipes"]) == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which even root cannot write")
@pytest.mark.parametrize(
    ("words", "name", "folder"),
    [
        ("demo --out /proc/x", "--out", "/proc/x"),
        ("train --recipe vae --data digits --out /proc/x", "--out", "/proc/x"),
        ("sweep --recipe vae --data digits --out /proc/x", "--out", "/proc/x"),
        ("evaluate /proc/x", "directory", "/proc/x"),
        ("encode r digits --out /proc/x/c.npz", "--out", "/proc/x"),
        ("sample /proc/x", "--out", "/proc/x"),
        ("mi a.npy --matrix --plot /proc/x/p.png", "--plot", "/proc/x"),
    ],
)
def test_unwritable_folder_is_refused_before_the_work(capsys, monkeypatch, words, name, folder):
    monkeypatch.setattr("echo_ext.data.load", lambda *_, **__: pytest.fail("work began"))
    monkeypatch.setattr("echo_ext.cli.mi.read_table", lambda *_: pytest.fail("work began"))
    assert cli.main(words.split()) == 2
    command = words.split()[0]
    expected = f"echo-ext {command}: error: {name} must be writable, got {folder}: No such file or directory\n"
    assert capsys.readouterr().err == expected


def test_format_of_a_plot_is_refused_before_the_work(capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["mi", "missing.npy", "--matrix", "--plot", "p.doc"]) == 2
    assert "--plot must be a file that ends in one of " in capsys.readouterr().err


# ---- Help and completion ---------------------------------------------------------------------------------------------


def examples():
    return [line for name in cli.COMMANDS for line in __import__(f"echo_ext.cli.{name}", fromlist="x").EXAMPLES]


def test_command_alone_shows_first_steps(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    steps = [line.strip() for line in shown.splitlines() if line.startswith("  echo-ext ")]
    assert len(steps) == 5
    for step in steps:
        assert cli._parser().parse_args(shlex.split(step)[1:]).command == step.split()[1]
    assert "https://echo-ext.readthedocs.io" in shown


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_ends_with_examples_and_fits_the_terminal(capsys, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        cli.main([*([command] if command else []), "--help"])
    assert stop.value.code == 0
    text, _, shown = capsys.readouterr().out.partition("\nexamples:\n")
    if command:
        assert shown.splitlines()
        assert all(line.startswith(f"  echo-ext {command}") for line in shown.splitlines())
    long = [line for line in text.partition("\n\n")[2].splitlines() if len(line) > columns]
    assert all(line.startswith("  -") for line in long), long  # a flag with a word that cannot be broken


@pytest.mark.parametrize("line", examples())
def test_example_is_a_command_with_names_that_exist(line):
    words = shlex.split(line)
    assert words.pop(0) == "echo-ext"
    arguments = cli._parser().parse_args(words)
    recipes = getattr(arguments, "recipe", [])
    assert set([recipes] if isinstance(recipes, str) else recipes) <= set(models.recipes())
    assert {Path(getattr(arguments, "data", "x.npz")).name} - set(data.names()) <= {"mine.npz", "x.npz"}


def test_completion_without_shtab_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert cli.main(["--print-completion", "bash"]) == 1
    assert "--print-completion needs shtab: pip install 'echo-ext[completion]'" in capsys.readouterr().err


def test_bash_completes_commands_recipes_and_data_sets(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        cli.main(["--print-completion", "bash"])
    Path("script").write_text(capsys.readouterr().out)
    Path("mine.npz").write_text("")
    cases = {
        "echo-ext tr": "train",
        "echo-ext train --recipe echo-m": "echo-matrix",
        "echo-ext train --data fashion-m": "fashion-mnist",
        "echo-ext sweep --data min": "mine.npz",
        "echo-ext encode runs mni": "mnist",
        "echo-ext mi a.csv --method bi": "bi-ksg",
        "echo-ext train --valid sp": "split",
    }
    program = ["source ./script"]
    for line in cases:
        words = line.split()
        program.append(f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _shtab_echo_ext")
        program.append('echo "${COMPREPLY[*]}"')
    found = subprocess.run(["bash", "-c", "\n".join(program)], capture_output=True, text=True)
    assert found.stdout.splitlines() == list(cases.values()), found.stderr
    for shell in ("zsh", "fish"):
        with pytest.raises(SystemExit):
            cli.main(["--print-completion", shell])
        assert all(name in capsys.readouterr().out for name in ("echo-matrix",))


# ---- The page --------------------------------------------------------------------------------------------------------


def test_page_lists_every_environment_variable():
    sources = [*(ROOT / "echo_ext").rglob("*.py"), ROOT / "csrc" / "common" / "isa.cpp", ROOT / "setup.py"]
    read = re.compile(r"(?:environ\.get\(|getenv\(|env\.get\()[\"'](ECHO_EXT_\w+)[\"']")
    found = {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}
    table = set(re.findall(r"`(ECHO_EXT_\w+)`", PAGE.read_text(encoding="utf-8").partition("## Environment")[2]))
    assert found == table
    assert len(found) >= 7
