"""The README's figures, made from files of `benchmarks/results`, never typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rlir_agents.report.tables import Summary, bounds, gain, markdown, number, percent, signed
from rlir_env.atomic_files import write_text

ARMS = {
    "rlir": "RLIR",
    "more_pretraining": "same minutes of further pre-training",
    "shuffled_actions": "RLIR rewarded on shuffled game actions",
}


_BEYOND = "beyond_more_pretraining"


def results_table(runs: Sequence[Summary]) -> str:
    """The README's table: one row a run, and the mean over seeds where an arm has several.

    Args:
        runs: entries of `benchmarks/results/rlir.json`: `paradigm`, `arm`, `seed`, and the keys of
            `summary.json`.

    Raises:
        ValueError: if a run lacks `paradigm` or `arm`.
    """
    header = [
        "paradigm",
        "arm",
        "seed",
        "judge F1 before",
        "after",
        "gain [95 %]",
        "share of gap closed",
    ]
    header += ["coach F1 before", "after", "PSNR before", "after"]
    rows = [header]
    for (paradigm, arm), group in _groups(runs).items():
        rows += [[paradigm, ARMS.get(arm, arm), str(run["seed"]), *_run_cells(run)] for run in group]
        if len(group) > 1:
            cells = [f"**{cell}**" if cell else "" for cell in _mean_cells(group)]
            rows.append([paradigm, ARMS.get(arm, arm), "**mean**", *cells])
        rows += [_beyond_row(run) for run in group if _BEYOND in run]
    return markdown(rows, num_left=3)


def replace_block(readme: str | Path, name: str, block: str) -> None:
    """Write a block of text between two markers of the README.

    Args:
        readme: file with a line `<!-- name:begin -->` and, below it, `<!-- name:end -->`.
        name: of the block.
        block: Markdown.

    Raises:
        ValueError: if the markers are missing or in the wrong order.
    """
    before, after = _around_block(readme, name)
    write_text(readme, f"{before}\n{block}\n{after}")


def check_block(readme: str | Path, name: str) -> None:
    """See that there is a place for a block, before the hours that make it.

    Raises:
        ValueError: as `replace_block`.
    """
    _around_block(readme, name)


def _around_block(readme: str | Path, name: str) -> tuple[str, str]:
    """What stands before a block, with its first marker, and after it, with its last."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = Path(readme).read_text(encoding="utf-8")
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise ValueError(f"{readme} needs the lines {begin} and {end}, in this order, where the figures are to go")
    return text[: start + len(begin)], text[stop:]


def _beyond_row(run: Summary) -> list[str]:
    beyond = run[_BEYOND]
    gain_cell = f"{signed(beyond['judge_f1'])} {bounds(beyond['judge_f1_ci95'], signed)}".rstrip()
    psnr_cell = f"{signed(beyond['psnr'], 2)}"
    return [
        run["paradigm"],
        "the same minus further pre-training",
        str(run["seed"]),
        "",
        "",
        gain_cell,
        *[""] * 4,
        psnr_cell,
    ]


def _groups(runs: Sequence[Summary]) -> dict[tuple[str, str], list[Summary]]:
    """Runs by paradigm and arm: our arms in the order of `ARMS`, then others; by seed inside."""
    groups: dict[tuple[str, str], list[Summary]] = {}
    for run in runs:
        missing = [key for key in ("paradigm", "arm") if key not in run]
        if missing:
            raise ValueError(f"a run in the results lacks {', '.join(missing)}; it has {', '.join(sorted(run))}")
        groups.setdefault((run["paradigm"], run["arm"]), []).append(run)
    order = list(ARMS)

    def place(key: tuple[str, str]) -> tuple[str, int, str]:
        paradigm, arm = key
        return paradigm, order.index(arm) if arm in order else len(order), arm

    return {key: sorted(groups[key], key=lambda run: run["seed"]) for key in sorted(groups, key=place)}


def _run_cells(run: Summary) -> list[str]:
    judge, coach, psnr = run["judge_f1"], run["coach_f1"], run["psnr"]
    return [
        *(
            number(judge["before"]),
            number(judge["after"]),
            gain(judge),
            percent(run["share_of_gap_closed"]),
        ),
        *(number(coach["before"]), number(coach["after"])),
        *(number(psnr["before"], 2), number(psnr["after"], 2)),
    ]


def _mean_cells(group: Sequence[Summary]) -> list[str]:
    def over_runs(key: str, inner: str) -> float:
        return mean(run[key][inner] for run in group)

    judge = [over_runs("judge_f1", when) for when in ("before", "after")]
    shares = [run["share_of_gap_closed"] for run in group]
    share = None if None in shares else mean(shares)
    return [
        *(number(judge[0]), number(judge[1]), signed(judge[1] - judge[0]), percent(share)),
        *(number(over_runs("coach_f1", when)) for when in ("before", "after")),
        *(number(over_runs("psnr", when), 2) for when in ("before", "after")),
    ]
