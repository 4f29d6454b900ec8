"""Configs of the devices and the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass

from cogcalib_jax.errors import check, check_counts
from cogcalib_jax.settings import setting


@dataclass(frozen=True)
class MeshConfig:
    """Devices for each kind of parallelism; the product is the number of devices."""

    data: int = -1
    """copies of the model that read different examples; -1 takes the devices that are left"""
    fsdp: int = 1
    """devices over which each copy's weights are spread, gathered layer by layer"""
    tensor: int = 1
    """devices that share every matrix product (heads, MLP and vocabulary are cut)"""
    expert: int = 1
    """devices over which the experts of a mixture are spread; they also read different examples"""

    def __post_init__(self) -> None:
        check(
            self.data == -1 or self.data >= 1, "data", "must be at least 1, or -1 for what is left"
        )
        check_counts(self, "fsdp", "tensor", "expert")


@dataclass(frozen=True)
class DistributedConfig:
    """The address by which the processes of a run meet; unset: there is one process."""

    coordinator: str | None = setting(None, role="processes")
    """address of process 0 as host:port, the same for all"""
    processes: int | None = setting(None, role="processes")
    """how many processes there are, the same for all"""
    process: int | None = setting(None, role="processes")
    """the number of this one, from 0"""
    auto: bool = setting(False, role="processes")
    """take all three from the cluster: TPU pods, Slurm, Open MPI"""
    heartbeat_seconds: int = setting(100, role="processes")
    """seconds without a sign of life after which a process counts as lost and the others end"""

    def __post_init__(self) -> None:
        given = [x for x in (self.coordinator, self.processes, self.process) if x is not None]
        check(
            len(given) in (0, 3),
            "coordinator",
            "must be given together with processes and process (or auto alone)",
        )
        check(not (self.auto and given), "auto", "must be alone: the cluster provides the rest")
        check(
            10 <= self.heartbeat_seconds <= 86400,
            "heartbeat_seconds",
            "must be an integer from 10 (less is lost in a busy network) to 86400",
        )
        if given:
            check(":" in self.coordinator, "coordinator", "must be host:port")
            check(self.processes >= 1, "processes", "must be an integer of at least 1")
            check(
                0 <= self.process < self.processes,
                "process",
                f"must be from 0 to {self.processes - 1}",
            )
