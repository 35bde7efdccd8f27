"""What a person at the terminal sees of a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType

from torch import Tensor
from typing_extensions import Self

__all__ = ["ProgressBar", "watched"]


class ProgressBar:
    """One bar over all steps of a run, with the last epoch's validation beside it; nothing where nobody looks.

    Args:
        name: what is trained.
        steps: in all.
        done: of these before.
        shown: False for no bar at all.
    """

    def __init__(self, name: str, *, steps: int, done: int = 0, shown: bool = True) -> None:
        from tqdm.auto import tqdm

        # disable=None: no bar where standard error is not a terminal; leave=None: inside another bar it does not stay.
        self._bar = tqdm(total=steps, initial=done, desc=name, unit="step", leave=None, disable=None if shown else True)

    def step(self) -> None:
        """One more step is done."""
        self._bar.update()

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show the row of an epoch's history."""
        self._bar.set_postfix_str(f"epoch {row['epoch']:.0f}, validation loss {row['valid_loss']:.2f} nats")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def watched(draw: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """A model's method that draws, with a bar over its pixels where it goes from one to the next."""
    if "progress" not in inspect.signature(draw).parameters:
        return draw
    from tqdm.auto import tqdm

    return functools.partial(draw, progress=functools.partial(tqdm, desc=name, unit="pixel", leave=False, disable=None))
