"""An estimate as text for the console."""

from __future__ import annotations

from rlir_agents.dry_run.estimate import BANDWIDTH_SHARE, DEVICES, PRODUCT_SHARE, Estimate
from rlir_agents.report.tables import align


def estimate_table(estimate: Estimate) -> str:
    """Parameters, memory, work, and what it would take where."""
    networks = [["network", "parameters"]]
    networks += [[name, f"{count / 1e6:,.1f} M"] for name, count in estimate.num_parameters.items()]
    memory = [["all the time", "GB"], *([name, _gigabytes(size)] for name, size in estimate.held.items())]
    phases = [["phase", "GB besides", "TFLOP", "TB read"]]  # of products; of passes token by token or step by step
    for phase in estimate.phases:
        read = f"{phase.read_bytes / 1e12:,.3g}" if phase.read_bytes else ""
        phases.append(
            [phase.name, _gigabytes(phase.peak_bytes(estimate.rollout_batch_size)), f"{phase.flops / 1e12:,.3g}", read]
        )
    times = [["seconds of an iteration", *(device.name for device in DEVICES)]]
    for phase in estimate.phases:
        times.append([phase.name, *(f"{device.seconds(phase):,.3g}" for device in DEVICES)])
    times.append(["together", *(f"{estimate.seconds(device):,.3g}" for device in DEVICES)])
    hours = [estimate.seconds(device) * estimate.num_iterations / 3600 for device in DEVICES]
    times.append([f"hours of {estimate.num_iterations} iterations", *(f"{hour:,.2g}" for hour in hours)])
    times.append(["fits", *("yes" if estimate.fits(device) else "no" for device in DEVICES)])
    assumed = (
        f"Times assume {PRODUCT_SHARE:.0%} of a data sheet's bfloat16 rate and {BANDWIDTH_SHARE:.0%} of its bandwidth; "
        "memory is counted."
    )
    peak = f"at most {_gigabytes(estimate.peak_bytes)} GB at once"
    sections = [estimate.title, align(networks), align(memory), align(phases), peak, align(times), assumed]
    return "\n\n".join([*sections, _advice(estimate)])


def _advice(estimate: Estimate) -> str:
    """How many videos may be generated at once, where memory allows for any."""
    sizes = sorted({device.memory for device in DEVICES})
    largest = {memory: min(estimate.largest_rollout_batch(memory), estimate.num_videos) for memory in sizes}
    allowed = ", ".join(f"{count} in {_gigabytes(memory, 0)} GB" for memory, count in largest.items() if count >= 1)
    lines = [f"trainer.rollout_batch_size may be up to {allowed}"] if allowed else []
    lines += [
        f"{_gigabytes(memory, 0)} GB are too few for the rest: smaller trainer.micro_batch_size, "
        "checkpoint_activations=true and policy.positions_per_chunk=1024 help"
        for memory, count in largest.items()
        if count < 1
    ]
    return "\n".join(lines)


def _gigabytes(size: float, digits: int = 2) -> str:
    return f"{size / 1e9:,.{digits}f}"
