"""Progress bars."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType

from torch import Tensor
from typing_extensions import Self

__all__ = ["ProgressBar", "with_progress"]


class ProgressBar:
    """A bar over all steps of a run, with the last validation loss. It is disabled if stderr is not a terminal.

    Args:
        name: Description of the run.
        steps: Total number of steps.
        done: Number of steps that were done before.
        shown: Whether to show the bar on a terminal.
    """

    def __init__(self, name: str, *, steps: int, done: int = 0, shown: bool = True) -> None:
        from tqdm.auto import tqdm

        # disable=None disables the bar if stderr is not a terminal; leave=None removes a bar that is nested in another.
        self._bar = tqdm(total=steps, initial=done, desc=name, unit="step", leave=None, disable=None if shown else True)

    def step(self) -> None:
        """Count one more step."""
        self._bar.update()

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show the validation loss of an epoch, whose row of the history this is."""
        self._bar.set_postfix_str(f"epoch {row['epoch']:.0f}, validation loss {row['valid_loss']:.2f} nats")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def with_progress(method: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """Add a progress bar over pixels to a method of a model that draws them one by one; return others unchanged."""
    if "progress" not in inspect.signature(method).parameters:
        return method
    from tqdm.auto import tqdm

    return functools.partial(
        method, progress=functools.partial(tqdm, desc=name, unit="pixel", leave=False, disable=None)
    )
