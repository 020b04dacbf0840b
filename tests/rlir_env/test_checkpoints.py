"""Weight files: round trips, atomicity, strictness, and refusal to run foreign code."""

import pickle

import pytest
import torch
from torch import nn

from rlir_env.checkpoints import load_foreign, load_plain_pickle, load_safetensors, load_strict, save_safetensors


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


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "module"])
def test_foreign_files(tmp_path, wrapper, is_legacy):
    weights = {"a": torch.ones(2), "b": torch.zeros(1)}
    content = weights if wrapper is None else {wrapper: weights, "epoch": 3, "optimizer": {"state": {0: weights}}}
    torch.save(content, tmp_path / "file.ckpt", _use_new_zipfile_serialization=not is_legacy)
    loaded = load_foreign(tmp_path / "file.ckpt")
    assert list(loaded) == ["a", "b"] and loaded["a"].tolist() == [1.0, 1.0]


def test_foreign_safetensors(tmp_path):
    save_safetensors(tmp_path / "own.safetensors", {"a": torch.ones(2)}, {})
    assert load_foreign(tmp_path / "own.safetensors")["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", ""])
def test_what_compilation_and_parallel_training_write_is_taken_away(tmp_path, prefix):
    torch.save({prefix + "a": torch.ones(1), prefix + "b._orig_mod.c": torch.ones(1)}, tmp_path / "a.pt")
    assert list(load_foreign(tmp_path / "a.pt")) == ["a", "b.c"]


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    for content in ({"net": {"a": torch.ones(1)}}, {"a": 1}, [torch.ones(1)], {}):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ValueError, match="neither a state dict"):
            load_foreign(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_damaged_files_are_named(tmp_path, name):
    path, weights = tmp_path / name, {"a": torch.ones(1000)}
    if name == "a.pt":
        torch.save(weights, path)
    else:
        save_safetensors(path, weights, {})
    complete = path.read_bytes()
    for damaged in (complete[: len(complete) // 2], complete[:20], b"", b"not weights at all", b"\x80\x02junk"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} (is no complete|is empty|cannot be read as tensors)"):
            load_foreign(path)
    with pytest.raises(FileNotFoundError):
        load_foreign(tmp_path / f"missing-{name}")


@pytest.mark.parametrize("is_legacy", [False, True])
def test_foreign_file_cannot_run_code(tmp_path, capsys, is_legacy):
    torch.save({"a": _RunsCode()}, tmp_path / "bad.pt", _use_new_zipfile_serialization=not is_legacy)
    with pytest.raises(ValueError, match="nothing was run: .*print"):
        load_foreign(tmp_path / "bad.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles(tmp_path, protocol):
    content = {"model": {"args": [1, 2.5, None, True, (1, 2), "text", b"bytes", {}, 2**80]}}
    if protocol < 3:  # bytes need a function there
        content["model"]["args"].pop(6)
    (tmp_path / "a.model").write_bytes(pickle.dumps(content, protocol))
    assert load_plain_pickle(tmp_path / "a.model") == content


# LONG_BINPUT to a memo place of 2^31: the C unpickler would allocate and clear 32 GB for it.
_HUGE_MEMO = b"\x80\x02}r\xff\xff\xff\x7f."
_CALLS_SYSTEM = b"cposix\nsystem\n(S'echo code'\ntR."
_IMPORTS_BY_STACK = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09echo code\x85R."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(_RunsCode()), "it asks for builtins.print; nothing was run"),
        (_CALLS_SYSTEM, "it asks for posix.system; nothing was run"),
        (_IMPORTS_BY_STACK, "it asks for posix.system; nothing was run"),
        (_HUGE_MEMO, "a memo larger than the file"),
        (pickle.dumps({"a": [1] * 1000})[:-20], "is no pickle of plain containers"),
        (b"", "is no pickle of plain containers"),
        (b"{'a': 1}", "is no pickle of plain containers"),
        (pickle.dumps("a" * 2**21), "too large"),
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path, capfd, data, message):
    (tmp_path / "a.model").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_plain_pickle(tmp_path / "a.model")
    assert capfd.readouterr().out == ""


def test_a_module_without_memory_gets_its_own(tmp_path):
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half()
    torch.save(source.state_dict(), tmp_path / "a.pt")
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        module[0].bias.requires_grad_(False)
    load_strict(module, load_foreign(tmp_path / "a.pt"))
    (tmp_path / "a.pt").write_bytes(b"")  # nothing hangs on the file any more
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name].to(tensor.dtype)), name
    assert module[0].weight.dtype == torch.float32 and module[0].weight.requires_grad
    assert not module[0].bias.requires_grad


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
