"""The largest published size on a CPU: it is read from a file and makes a frame, in memory that a laptop has.

Slow; `pytest -m slow -s tests/rlir_agents/test_full_size.py` prints seconds and memory.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config

_LIMIT = 16 * 2**30
_GENERATE = """
import resource, sys, time
import torch
from rlir_agents.hardware import default_autocast_dtype
from rlir_agents.world_models import load_world_model
from rlir_agents.world_models.decoding import generate

started = time.monotonic()
model = load_world_model(sys.argv[1])
loaded = time.monotonic()
prompt, word = torch.zeros(1, 336, dtype=torch.long), torch.full((1, 1, 11), model.num_codes)
code = generate(model, prompt, word, sys.argv[2], dtype=default_autocast_dtype("cpu"))
assert code.shape == (1, 336) and code.max() < model.num_codes and len(code.unique()) > 50
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(sum(p.numel() for p in model.parameters()), loaded - started, time.monotonic() - loaded, peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["naive", "image_diagonal"])
def test_mineworld_1200m_generates_a_frame_on_a_cpu(tmp_path: Path, decoding: str) -> None:
    config = compose_config("train", ["world=published_shapes", "world_model=mineworld_1200m"])
    with torch.device("meta"):
        shapes = build(config["world_model"], {}).state_dict()
    weights = {name: torch.empty(w.shape, dtype=torch.bfloat16).normal_(0, 0.02) for name, w in shapes.items()}
    save_file(weights, tmp_path / "1200M_16f.safetensors")
    del weights
    command = [sys.executable, "-c", _GENERATE, str(tmp_path / "1200M_16f.safetensors"), decoding]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    num_parameters, load_seconds, frame_seconds, peak = map(float, printed.split())
    print(
        f"\n{num_parameters / 1e6:.0f} M parameters: read in {load_seconds:.1f} s, a frame by {decoding} decoding in "
        f"{frame_seconds:.1f} s, {peak / 2**30:.1f} GiB at most"
    )
    assert num_parameters > 1.2e9 and peak < _LIMIT
