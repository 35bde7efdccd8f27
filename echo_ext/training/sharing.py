"""Sharing of finished runs: what ``push`` uploads, with a model card, and ``pull``, which makes a run of it again."""

from __future__ import annotations

import csv
import io
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_ext import __version__, _checks, _parsing, models
from echo_ext._files import PART
from echo_ext.data import catalog
from echo_ext.models import pretrained
from echo_ext.training import checkpoints
from echo_ext.training.configuration import SETTINGS, Configuration, defaults
from echo_ext.training.evaluation import LABELS
from echo_ext.training.ownership import explained
from echo_ext.training.run_directory import (
    CONFIGURATION_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    RESULT_FILE,
    Run,
    RunDirectory,
    checked_result,
    load,
)

__all__ = ["export", "pull", "push", "training_command"]

# The figures that are shared, with their captions.
FIGURES = {
    "reconstructions.png": "Test rows and their reconstructions",
    "samples.png": "Samples",
    "curves.png": "Rate, distortion and -ELBO over the epochs",
    "marginal_activations.png": "Distributions of the latents",
    "rate_against_activation.png": "Rate against the norm of the code",
    "embedding.png": "Codes by t-SNE",
}
METRICS_BYTES = 2**24
CARD_FILE = "README.md"


def push(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    **options: Any,
) -> str:
    """Upload a finished run to a repository of the Hugging Face Hub, which is created if necessary.

    The repository gets the files of :func:`export`. Own data are not uploaded, and of their path only the last part.

    Args:
        path: The folder of the run.
        repo_id: The repository, such as "user/name".
        license: The license of the weights for the model card, such as "mit" or "cc-by-4.0". None states none.
        private: Whether a new repository is private. None means the default of the owner.
        options: Further options of ``push_to_hub`` of :class:`huggingface_hub.ModelHubMixin`, such as ``token``.

    Returns:
        The address of the commit.

    Raises:
        ConnectionError: The Hub cannot be reached, or does not accept the files.
        FileNotFoundError: There is no finished run.
        ModuleNotFoundError: huggingface_hub or safetensors is not installed.
        PermissionError: There is no token, or it may not write to the repository.
        ValueError: A file is damaged, or the name is no name of a repository.

    Example:
        >>> echo_ext.training.push("runs/echo", "user/name", private=True)  # doctest: +SKIP
        'https://huggingface.co/user/name/commit/...'
    """
    pretrained.need_hub()
    from echo_ext._hub import Shared

    run = Shared(lambda folder: _write(path, folder, repo_id, license), "")
    return run.push_to_hub(repo_id, private=private, **options)


def export(path: str | os.PathLike[str], folder: str | os.PathLike[str], *, license: str | None = None) -> None:
    """Write what :func:`push` uploads into a folder, to look at it before, or to share it in another way.

    The folder gets ``model.safetensors`` and ``config.json``, which :meth:`echo_ext.models.Model.from_pretrained`
    loads, ``config.yaml``, ``result.json``, ``metrics.csv``, ``evaluation.json`` and figures of the run, as far as it
    has them, and ``README.md``, the model card.

    Args:
        path: The folder of the run.
        folder: The folder to write to, which is created if necessary. Files of the same names are replaced.
        license: The license of the weights for the model card. None states none.

    Raises:
        FileNotFoundError: There is no finished run.
        ModuleNotFoundError: huggingface_hub or safetensors is not installed.
        ValueError: A file is damaged.

    Example:
        >>> echo_ext.training.export("runs/echo", "shared", license="mit")  # see the example of train
        >>> type(echo_ext.models.Model.from_pretrained("shared")).__name__
        'Autoencoder'
    """
    pretrained.need_hub()
    folder = Path(folder)
    if folder.resolve() == Path(path).resolve():
        raise ValueError(f"out must be another folder than that of the run, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, folder, "user/name", license)


def pull(name: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Run:
    """Download a run that :func:`push` has uploaded into a new run directory.

    It can be evaluated, encode data and start other runs, as if it had been trained here, but not be trained further.
    Files of unknown origin are safe: nothing in them is executed, and all are checked before the folder is written.

    Args:
        name: The repository, such as "user/name", or a folder that :func:`export` has written.
        out: The folder of the run, which must not contain one.
        options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``force_download``, as for
            :meth:`echo_ext.models.Model.from_pretrained`.

    Returns:
        The model, its configuration and its history.

    Raises:
        ConnectionError: The Hub cannot be reached.
        FileExistsError: ``out`` contains a run.
        FileNotFoundError: There is no such repository or folder, or it has no run.
        ModuleNotFoundError: huggingface_hub or safetensors is not installed.
        PermissionError: The owner of the repository has to grant access to it.
        ValueError: A file is damaged, or does not fit the others.

    Example:
        >>> echo_ext.training.export("runs/echo", "shared")  # see the example of train
        >>> model, configuration, history = echo_ext.training.pull("shared", "runs/pulled")
        >>> configuration.recipe, len(history)
        ('echo', 1)
    """
    pretrained.need_hub()
    from echo_ext._hub import find

    out = Path(out)
    model = models.Model.from_pretrained(name, **options)
    config, *files = find(name, pretrained.CONFIG_FILE, CONFIGURATION_FILE, METRICS_FILE, RESULT_FILE, **options)
    more = find(name, EVALUATION_FILE, optional=True, **options)
    try:
        configuration = Configuration.from_mapping(_parsing.read_yaml(files[0]))
        history = _read_history(files[1])
        written: Any = _parsing.read_json(files[2])
        result = checked_result({**written, "data": configuration.data}, configuration)
        evaluation: Any = _parsing.read_json(more[0]) if more else None
        batch_rows = _checks.whole("batch_rows", pretrained.read_config(config).get("batch_rows"), minimum=1)
        checkpoint = {
            **checkpoints.model_identity(configuration),
            **{"format": checkpoints.FORMAT, "version": __version__, "finished": True, "precision": {}},
            **{"data_shape": list(model.data_shape), "batch_rows": batch_rows},
            **{"epoch": len(history), "history": history, "state_dict": model.state_dict()},
        }
        checkpoints.check_structure_for(checkpoint, configuration)
    except (ValueError, TypeError) as wrong:
        raise ValueError(f"{os.fspath(name)} is not a run of echo-ext {__version__}: {wrong}") from wrong
    RunDirectory(out).refuse_run(configuration)
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=PART) as temporary:
            directory = RunDirectory(Path(temporary) / out.name)
            directory.begin(configuration)
            directory.save_checkpoint(checkpoint, is_best=configuration.valid != "none")
            directory.write_metrics(history)
            if evaluation is not None:
                directory.write_json(EVALUATION_FILE, evaluation)
            directory.write_json(RESULT_FILE, result)
            load(directory.path)  # fails now if the files do not fit each other
            try:
                os.replace(directory.path, out)
            except OSError as refused:
                raise FileExistsError(
                    f"out must be a new or an empty folder, got {out}: {refused.strerror}"
                ) from refused
    return load(out)


def training_command(configuration: Configuration, data_shape: Sequence[int]) -> str:
    """The command that trains a run with this configuration on data of this shape."""
    usual = {name: setting.default for name, setting in SETTINGS.items()} | defaults(configuration.recipe, data_shape)
    words = ["echo-ext", "train"]
    for name, value in _public(configuration).items():
        flag = f"--{name.replace('_', '-')}"
        if name == "model_settings":
            words += [word for key, each in value.items() for word in ("--set", f"{key}={_yaml(each)}")]
        elif value == usual[name] and name != "seed":
            continue
        elif SETTINGS[name].kind is bool:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, "none" if value is None else str(value)]
    return shlex.join(words)


def _public(configuration: Configuration) -> dict[str, Any]:
    """The settings, with the names of files and folders of this machine in place of their paths."""
    settings = configuration.as_mapping()
    for name in ("data", "initial_run"):
        if settings[name] is not None and settings[name] not in catalog.CATALOG:
            settings[name] = Path(settings[name]).name
    return settings


def _yaml(value: object) -> str:
    """A value in one line of YAML."""
    import yaml

    return str(yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1])


def _write(path: str | os.PathLike[str], folder: Path, repo_id: str, license: str | None) -> None:
    """Write the files of :func:`export`."""
    import yaml

    source, to = RunDirectory(path), RunDirectory(folder)
    result, run = source.result(), load(path)
    settings = _public(run.configuration)
    result["data"] = settings["data"]
    evaluation = _evaluation(source, result)
    batch_rows = source.load_checkpoint(run.configuration)["batch_rows"]
    pretrained.write(run.model, folder, batch_rows=batch_rows)
    to.write(CONFIGURATION_FILE, yaml.safe_dump(settings, sort_keys=False).encode())
    to.write_metrics(run.history)
    to.write_json(RESULT_FILE, result)
    if evaluation:
        to.write_json(EVALUATION_FILE, evaluation)
    figures = [name for name in FIGURES if (source.path / name).is_file()]
    for name in figures:
        to.write(name, (source.path / name).read_bytes())
    to.write(CARD_FILE, _card(repo_id, license, run, {**result, **evaluation}, figures).encode())


def _evaluation(source: RunDirectory, result: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``evaluation.json``, if the run was evaluated after its last epoch."""
    file = source.path / EVALUATION_FILE
    if not file.is_file():
        return {}
    content: Any = _parsing.read_json(file)
    same = isinstance(content, dict) and content.get("epochs") == result["epochs"]
    return {**content, "data": result["data"]} if same else {}


def _read_history(file: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``."""
    rows = list(csv.DictReader(io.StringIO(_parsing.read_text(file, METRICS_BYTES))))
    if not rows:
        raise ValueError(f"{METRICS_FILE} must have at least one epoch")
    return [{str(name): _number(text) for name, text in row.items()} for row in rows]


def _number(text: Any) -> float:
    try:
        return int(text) if str(text).isdigit() else float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{METRICS_FILE} must contain only numbers, got {_checks.brief(text)}") from None


# ---- The model card --------------------------------------------------------------------------------------------------


def _card(repo_id: str, license: str | None, run: Run, found: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The text of ``README.md`` of a run with these measures and figures."""
    recipe, data, shape = found["recipe"], found["data"], run.model.data_shape
    parts = [
        pretrained.card_head(recipe, license),
        f"# {recipe} on {data}",
        f"{models.recipes()[recipe]}, trained by [echo-ext]({pretrained.HOME}) on the data set `{data}`.",
        "## Measures",
        f"Of {found['rows']['test']} test rows. Rates, distortions and likelihoods are in nats per sample.",
        _table([("measure", "value"), *_measures(found)]),
        *(f"![{FIGURES[name]}]({name})" for name in figures),
        "## How to load it",
        "```shell\npip install 'echo-ext[hub]'\n```",
        "```python\nimport torch\nimport echo_ext\n\n"
        f'model = echo_ext.models.Model.from_pretrained("{repo_id}")\n'
        f"x = torch.rand(2, {', '.join(map(str, shape))})  # two rows of data\n"
        "z = model.encode(x)\n"
        "reconstructed = model.reconstruct(x)\n"
        "samples = model.sample(16)\n```",
        f"`echo-ext pull {repo_id}` makes a run directory of it, for `echo-ext evaluate`, `encode` and `sample`.",
        "## How it was trained",
        f"```shell\n{training_command(run.configuration, shape)}\n```",
        f"{found['epochs']} epochs took {found['seconds']:.0f} s. The versions of the packages:",
        _table([("package", "version"), *dict(found.get("versions", {})).items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _measures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The labels and the values of all measures."""
    rows = []
    for name, label in LABELS.items():
        if isinstance(value := found.get(name), int | float):
            error = found.get(f"{name}_error")
            rows.append((label, f"{value:.3f}" + (f" +- {error:.3f}" if error else "")))
    return rows


def _table(rows: Sequence[tuple[object, object]]) -> str:
    lines = [f"| {first} | {second} |" for first, second in rows]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])
