"""Weight files: round trips, atomicity, strictness, and refusal to run foreign code."""

import pickle

import pytest
import torch
from torch import nn

from rlir_env.checkpoints import load_foreign, load_safetensors, load_strict, save_safetensors


class _RunsCode:
    def __reduce__(self):
        return print, ("code from a weight file",)


def test_round_trip_keeps_weights_and_config(tmp_path):
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    save_safetensors(tmp_path / "a.safetensors", module, {"widths": (3, 2), "name": "a"})
    state_dict, config = load_safetensors(tmp_path / "a.safetensors")
    assert config == {"widths": [3, 2], "name": "a"}
    assert all(torch.equal(state_dict[key], value) for key, value in module.state_dict().items())


def test_float16_halves_floats_only(tmp_path):
    weights = {"weight": torch.tensor([0.5, 1 / 3]), "count": torch.tensor([2**40])}
    save_safetensors(tmp_path / "a.safetensors", weights, {}, dtype=torch.float16)
    state_dict, _ = load_safetensors(tmp_path / "a.safetensors")
    assert state_dict["weight"].dtype == torch.float16
    assert state_dict["weight"].tolist() == [0.5, 0.333251953125]  # the nearest halfs
    assert state_dict["count"].tolist() == [2**40]


def test_tied_and_transposed_tensors_are_stored(tmp_path):
    matrix = torch.arange(6.0).view(2, 3)
    save_safetensors(tmp_path / "a.safetensors", {"a": matrix, "b": matrix, "c": matrix.T}, {})
    state_dict, _ = load_safetensors(tmp_path / "a.safetensors")
    assert torch.equal(state_dict["b"], matrix) and torch.equal(state_dict["c"], matrix.T)


def test_a_failing_save_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"a": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="a has values that torch.float16 cannot hold"):
        save_safetensors(path, {"a": torch.full((1,), 1e5)}, {}, dtype=torch.float16)
    with pytest.raises(TypeError):  # a set is not JSON
        save_safetensors(path, {"a": torch.zeros(1)}, {"set": {1}})
    assert load_safetensors(path)[0]["a"].tolist() == [1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_foreign_files(tmp_path):
    weights = {"a": torch.ones(2)}
    torch.save(weights, tmp_path / "bare.pt")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "wrapped.ckpt")
    save_safetensors(tmp_path / "own.safetensors", weights, {})
    for name in ("bare.pt", "wrapped.ckpt", "own.safetensors"):
        assert load_foreign(tmp_path / name)["a"].tolist() == [1.0, 1.0], name
    torch.save({"model": weights}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="neither a state dict"):
        load_foreign(tmp_path / "nested.pt")


def test_foreign_file_cannot_run_code(tmp_path, capsys):
    torch.save({"a": _RunsCode()}, tmp_path / "bad.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_foreign(tmp_path / "bad.pt")
    assert capsys.readouterr().out == ""


def test_strict_loading_names_every_problem_and_changes_nothing():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    given = {key: torch.zeros_like(value) for key, value in before.items()}
    del given["0.bias"]
    given["1.weight"] = torch.zeros(5, 2)
    given["2.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="fit Sequential") as error:
        load_strict(module, given)
    assert "missing: 0.bias" in str(error.value)
    assert "unexpected: 2.weight" in str(error.value)
    assert "1.weight (file [5, 2], module [1, 2])" in str(error.value)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("prefix", ["", "model.", "tokenizer.model."])
def test_strict_loading_strips_a_common_prefix(prefix):
    module = nn.Linear(2, 1)
    given = {prefix + key: torch.full_like(v, 7) for key, v in module.state_dict().items()}
    load_strict(module, given, strip_prefixes=("tokenizer.model.", "model."))
    assert module.weight.tolist() == [[7.0, 7.0]]
