"""The command line: ``rlir VERB [overrides]``. Every verb is a file of `rlir_agents.commands`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

VERBS = {
    "record": "play a game and record it, or validate recordings",
    "pretrain": "make a tokenizer, an inverse dynamics model or a world model from recordings",
    "study": "measure what readers can read, which settings learn best, which SDE suits denoising",
    "train": "post-train a world model with inverse rewards, and report what it gained",
    "evaluate": "measure how well a world model follows game actions",
    "score": "score folders of videos by MineWorld's protocol",
    "compare": "run all arms and seeds, and make the table of results",
    "generate": "write videos to look at",
    "inspect": "say what a weight file holds, and whether it can be read",
    "ship": "put what was made among the package's assets",
}

_RESUMABLE = ("record", "pretrain", "study", "train", "compare")

_HELP = """\
rlir: post-train video world models until they obey their actions

usage: rlir VERB [key=value ...]

{verbs}

rlir VERB --help lists the keys of a verb and their values; rlir --version says which release this is.
A user's mistake is reported in a line; RLIR_TRACEBACK=1 shows where it was found.
"""

# What our own code raises for what a user can get wrong; everything else is a bug and keeps its traceback.
_USER_ERRORS = (ValueError, FileNotFoundError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: without the program's name; those of the process where None.

    Returns:
        The exit status: 0, or 2 after a user's mistake.
    """
    verb, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {name:<10}{text}" for name, text in VERBS.items())))
        return 0
    if verb == "--version":
        print(f"rlir {version('rlir')}")
        return 0
    if verb not in VERBS:
        print(f"rlir: no verb {verb!r}; use one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    command = import_module(f"rlir_agents.commands.{verb}")  # heavy, so only the one that is used
    try:
        if {"-h", "--help"} & set(rest):
            print(command.help_text())
        else:
            command.run(rest)
    except _USER_ERRORS as error:
        if os.environ.get("RLIR_TRACEBACK"):
            raise
        print(f"rlir {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        is_kept = verb in _RESUMABLE and "trainer.dry_run=true" not in rest
        outlook = "; the same command goes on from its last checkpoint" if is_kept else ""
        print(f"\nrlir {verb}: stopped{outlook}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
