"""The Hugging Face Hub: uploads by the mixin of huggingface_hub, downloads, and errors of one line."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, constants, get_token, hf_hub_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import logging

__all__ = ["Shared", "find"]


class Shared(ModelHubMixin):
    """What huggingface_hub saves and pushes: the files that a function writes into a folder, and a model card.

    It stands between a model and the mixin, so that models do not need huggingface_hub.
    """

    def __init__(self, write: Callable[[Path], object], card: str) -> None:
        self._write = write
        self._card = card

    def _save_pretrained(self, save_directory: Path) -> None:
        self._write(save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, as the mixin asks for it."""
        return ModelCard(self._card)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push as the mixin does, with the options of huggingface_hub, and return the address of the commit."""
        if options.get("token") is None and get_token() is None:
            advice = f"log in by `hf auth login`, or set HF_TOKEN to a token of {constants.ENDPOINT}/settings/tokens"
            raise PermissionError(f"a token is needed to push to {repo_id}: {advice}")
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder))  # now, so that its errors are no errors of the Hub
            self._write = functools.partial(shutil.copytree, folder, dirs_exist_ok=True)
            try:
                with _quiet():
                    return str(super().push_to_hub(repo_id, **options))
            except Exception as error:
                raise _explanation(error, repo_id) from error


def find(name: str | os.PathLike[str], *files: str, optional: bool = False, **options: Any) -> list[Path]:
    """Return the paths of files of a folder or a repository, from which missing ones are downloaded.

    Args:
        name: The folder, or the name of the repository, such as "user/name".
        files: The names of the files.
        optional: Whether to leave out files that there are not, rather than to raise an error.
        options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``force_download`` of
            :func:`huggingface_hub.hf_hub_download`.
    """
    if (folder := Path(name)).is_dir():
        found = [folder / file for file in files]
        if missing := [file.name for file in found if not file.is_file() and not optional]:
            raise FileNotFoundError(f"there is no saved model in {folder}: it has no {missing[0]}")
        return [file for file in found if file.is_file()]
    found = []
    for file in files:
        try:
            with _quiet():
                found.append(Path(hf_hub_download(os.fspath(name), file, **options)))
        except Exception as error:
            if not (optional and isinstance(error, hub_errors.EntryNotFoundError)):
                raise _explanation(error, os.fspath(name), file) from error
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of huggingface_hub about each attempt to reach the Hub, which may succeed after all."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _explanation(error: BaseException, name: str, file: str | None = None) -> Exception:
    """The error of one line that says what to do, in place of one of huggingface_hub, which has several lines.

    Args:
        error: The error of a download of a file, or of a push.
        name: The repository.
        file: The file. None means that the error is that of a push.
    """
    home, log_in = constants.ENDPOINT, "log in by `hf auth login`"
    action = "push" if file is None else "download"
    if isinstance(error.__cause__, hub_errors.HfHubHTTPError):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub_errors.HFValidationError):
        argument, what = "name", "a folder with a saved model, or a repository"
        if file is None:
            argument, what = "repo_id", "a repository"
        return ValueError(f"{argument} must be {what} such as 'user/name', got {name!r}")
    if isinstance(error, hub_errors.GatedRepoError):
        return PermissionError(f"access to {home}/{name} must be granted by its owner: ask for it there, and {log_in}")
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return FileNotFoundError(f"{home}/{name} has no such revision")
    if isinstance(error, hub_errors.RemoteEntryNotFoundError):
        return FileNotFoundError(f"{home}/{name} has no {file}: it is nothing that echo-ext has saved")
    if file is None and status in (401, 403):
        return PermissionError(f"your token must be allowed to write to {name} at {home}; {log_in} with one that is")
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return FileNotFoundError(f"there is no model {name!r} at {home}, or it is private: check the name, or {log_in}")
    if status is not None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ConnectionError(f"{home} refused to {action} {name}: {reason}")
    advice = "try again with a network"
    if file is not None:
        advice += f", or copy the folder that `hf download {name} --local-dir DIR` writes elsewhere, and give its path"
    return ConnectionError(f"{home} cannot be reached to {action} {name}: {advice}")
