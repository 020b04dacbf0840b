"""Memory and time of an iteration on GPUs that are not here, from counted work and their data sheets.

Times are no measurements: they assume that large products reach 40 % of the sheet's rate, and passes over weights and
cache 60 % of its bandwidth, which well-written code does. What is held and what is alive at once is counted, not
assumed; an allocator adds some percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlir_agents.dry_run.phases import Phase

PRODUCT_SHARE, BANDWIDTH_SHARE = 0.4, 0.6
"""Of a data sheet's figures that we count on."""


@dataclass(frozen=True)
class Device:
    """What a data sheet says.

    Attributes:
        name: Of the GPU.
        memory: Bytes.
        products: bfloat16 products with float32 sums, without sparsity, FLOP/s.
        bandwidth: Of its memory, bytes/s.
    """

    name: str
    memory: float
    products: float
    bandwidth: float

    def seconds(self, phase: Phase) -> float:
        """Of a phase: arithmetic or reading, whichever is longer."""
        arithmetic = phase.flops / (PRODUCT_SHARE * self.products)
        return max(arithmetic, phase.read_bytes / (BANDWIDTH_SHARE * self.bandwidth))


DEVICES = (
    Device("RTX 4090, 24 GB", 24e9, 165e12, 1.01e12),
    Device("A100, 80 GB", 80e9, 312e12, 2.04e12),
    Device("H100, 80 GB", 80e9, 989e12, 3.35e12),
)


@dataclass(frozen=True)
class Estimate:
    """What an iteration takes.

    Attributes:
        title: What was counted.
        num_parameters: By network.
        held: Bytes that are there all the time, by what for.
        phases: In order.
        num_videos: Of an iteration.
        rollout_batch_size: Videos generated at once.
        num_iterations: Of the whole training.
    """

    title: str
    num_parameters: Mapping[str, int]
    held: Mapping[str, int]
    phases: Sequence[Phase]
    num_videos: int
    rollout_batch_size: int
    num_iterations: int

    @property
    def peak_bytes(self) -> int:
        """Most memory at once."""
        return self.held_bytes + max(phase.peak_bytes(self.rollout_batch_size) for phase in self.phases)

    @property
    def held_bytes(self) -> int:
        """What is there all the time."""
        return sum(self.held.values())

    def largest_rollout_batch(self, memory: float) -> int:
        """How many videos can be generated at once in so much memory; 0 if not even one, or the rest does not fit."""
        left = memory - self.held_bytes
        if any(phase.peak_bytes(1) > left for phase in self.phases):
            return 0
        return min(int((left - phase.fixed_bytes) // phase.video_bytes) for phase in self.phases if phase.video_bytes)

    def seconds(self, device: Device) -> float:
        """Of an iteration."""
        return sum(device.seconds(phase) for phase in self.phases)

    def fits(self, device: Device) -> bool:
        """Whether its memory holds everything."""
        return self.peak_bytes <= device.memory
