"""What all metrics have in common: gather clips, compute, forget. A metric is never a reward."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Metric(ABC):
    """Compares what was generated with what should have been, clip by clip, without gradients.

    A subclass turns every clip into a table of numbers and says what the tables of all clips mean.
    The tables of single clips stay available, because intervals are found by drawing clips anew
    (:mod:`rlir_env.metrics.bootstrap`).
    """

    def __init__(self) -> None:
        """Start without clips."""
        self._tables: list[Tensor] = []

    @abstractmethod
    def table(self, generated: Tensor, reference: Tensor) -> Tensor:
        """What a batch of N clips contributes, ``[N, ...]``, one table per clip.

        Raises:
            ValueError: if the two do not fit together.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures of all clips added so far, by log key.

        Raises:
            ValueError: if there are none.
        """

    @property
    def per_clip(self) -> Tensor:
        """The tables of all clips added so far, ``[N, ...]``.

        Raises:
            ValueError: if there are none.
        """
        if not self._tables:
            raise ValueError(f"{type(self).__name__} has seen no clips: call update() first")
        return torch.cat(self._tables)

    @torch.no_grad()
    def update(self, generated: Tensor, reference: Tensor) -> None:
        """Add a batch of N clips.

        Args:
            generated: ``[N, ...]``, what the world model made or what was read from it.
            reference: ``[N, ...]``, the truth, of the same shape.

        Raises:
            ValueError: if the two do not fit together.
        """
        if generated.shape != reference.shape:
            raise ValueError(
                f"generated {tuple(generated.shape)} and reference {tuple(reference.shape)} must have the same shape"
            )
        self._tables.append(self.table(generated, reference).cpu())

    def reset(self) -> None:
        """Forget all clips."""
        self._tables = []
