"""Checks of checkpoint files and weights, and optimizer states keyed by names."""

import zipfile

import pytest
import torch

from diffgan.errors import UserError
from diffgan.training.checkpoints import check_weights, contiguous, find_damage, keyed_by_name, lay_out_as_weights

CONTENT = {"state_dict": {"weight": torch.arange(1000.0)}, "pytorch-lightning_version": "2"}


def test_a_complete_checkpoint_has_no_damage(tmp_path):
    torch.save(CONTENT, tmp_path / "last.ckpt")
    assert find_damage(tmp_path / "last.ckpt") is None


def test_truncated_and_changed_checkpoints_are_damaged(tmp_path):
    file = tmp_path / "last.ckpt"
    torch.save(CONTENT, file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert find_damage(file)
    position = content.index(torch.arange(1000.0).numpy().tobytes()) + 500
    file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    assert find_damage(file).endswith("is damaged")


def test_other_files_are_not_checkpoints(tmp_path):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, file)
    assert find_damage(file) == "it has no pytorch-lightning_version"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("text", "text")
    assert find_damage(file)
    file.write_bytes(b"")
    assert find_damage(file)


def test_weights_of_another_model_are_named():
    model = {"generator.a": torch.zeros(2, 3), "teacher.a": torch.zeros(1), "discriminator.a": torch.zeros(4)}
    check_weights(model, {"generator.a": torch.ones(2, 3)}, "glyphs")
    check_weights(model, {"generator.a": torch.ones(2, 3), "discriminator.a": torch.ones(4)}, "glyphs")
    shapes = r"generator\.a has shape \(3,\) there and \(2, 3\) in the model of teacher glyphs"
    with pytest.raises(UserError, match=shapes):
        check_weights(model, {"generator.a": torch.ones(3)}, "glyphs")
    with pytest.raises(UserError, match=r"generator\.b has shape \(3,\) there and none"):
        check_weights(model, {"generator.a": torch.ones(2, 3), "generator.b": torch.ones(3)}, "glyphs")


def trained_optimizer(network):
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer


def test_optimizer_states_are_keyed_by_name():
    optimizer = trained_optimizer(torch.nn.Conv2d(3, 4, 3))
    numbered, named = optimizer.state_dict(), keyed_by_name(optimizer.state_dict(), ["weight", "bias"])
    assert list(named["state"]) == ["weight", "bias"]
    for number, name in enumerate(named["state"]):
        assert torch.equal(named["state"][name]["exp_avg"], numbered["state"][number]["exp_avg"])
    assert named["param_groups"] == [numbered["param_groups"][0] | {"params": ["weight", "bias"]}]
    assert keyed_by_name({}, ["weight"]) == {}
    again = keyed_by_name(named, [])
    assert list(again["state"]) == ["weight", "bias"] and again["param_groups"] == named["param_groups"]


def test_optimizer_states_take_the_memory_layout_of_their_weights():
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = trained_optimizer(network)
    saved = contiguous(optimizer.state_dict())
    assert saved["state"][0]["exp_avg"].is_contiguous()
    optimizer.state[network.weight]["exp_avg"] = saved["state"][0]["exp_avg"]
    lay_out_as_weights(optimizer)
    average = optimizer.state[network.weight]["exp_avg"]
    assert average.stride() == network.weight.stride() and torch.equal(average, saved["state"][0]["exp_avg"])
