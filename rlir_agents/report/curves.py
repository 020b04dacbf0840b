"""Training curves from the files that the logger left, for the report."""

from __future__ import annotations

import csv
from pathlib import Path


def read_csv_curves(folder: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Curves by log key, as TorchRL's `CSVLogger` leaves them: ``<folder>/**/scalars/<key>.csv``.

    A resumed run appends to its files and may repeat steps; the last value of a step wins.

    Args:
        folder: the run's folder, or any folder above its ``scalars``.

    Raises:
        ValueError: if a file holds something other than "step,value" lines.
    """
    curves = {}
    for path in sorted(Path(folder).rglob("scalars/**/*.csv")):
        after_scalars = path.parts[len(path.parts) - path.parts[::-1].index("scalars") :]
        key = "/".join(after_scalars).removesuffix(".csv")
        curves[key] = _read_curve(path)
    return curves


def _read_curve(path: Path) -> list[tuple[float, float]]:
    values: dict[float, float] = {}
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            try:
                step, value = map(float, row)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: expected 'step,value', found {row}") from error
            values[step] = value
    return sorted(values.items())
