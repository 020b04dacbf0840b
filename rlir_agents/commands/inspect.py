"""rlir inspect: what is this weight file? Whose models it holds, whether every tensor fits, and what reads it.

    rlir inspect checkpoints/300M_16f.ckpt    # MineWorld's: a transformer and its tokenizer
    rlir inspect 4x_idm.model 4x_idm.weights  # VPT's inverse dynamics model
    rlir inspect runs/demo/policy.safetensors

Nothing in a file is ever run, and weights stay where they are: a checkpoint may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlir_agents.checkpoint_contents import read_contents


def run(arguments: Sequence[str]) -> None:
    """Print what is in each file.

    Raises:
        ValueError: if no file is given, or one holds nothing that can be read here.
    """
    if not arguments:
        raise ValueError("write `rlir inspect FILE ...`")
    contents = [read_contents(path) for path in arguments]
    print("\n\n".join(one.to_text() for one in contents))
    unreadable = [str(one.path) for one in contents if not one.is_readable]
    if unreadable:
        raise ValueError(f"not all of {', '.join(unreadable)} can be read, see above")


def help_text() -> str:
    """What ``rlir inspect --help`` prints."""
    return f"{__doc__}\nKeys: none, only files."
