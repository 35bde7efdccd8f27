"""A moment at which training stops by itself, to go on later."""

from __future__ import annotations

import dataclasses
import time

__all__ = ["Deadline", "TimeLimitReached"]


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A moment on the clock that all processes of a machine share.

    Args:
        at: The moment, in seconds of :func:`time.monotonic`.
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment this many seconds from now.

        Raises:
            ValueError: ``seconds`` is not positive.
        """
        if not seconds > 0:
            raise ValueError(f"time_limit must be positive, got {seconds} seconds")
        return cls(time.monotonic() + seconds)

    @property
    def has_passed(self) -> bool:
        """Whether it is time to stop."""
        return time.monotonic() >= self.at


class TimeLimitReached(Exception):
    """Training stopped at its deadline. Its checkpoint is saved, and resuming it continues with the next step."""
