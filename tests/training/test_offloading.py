"""Modules that stay on the CPU and are lent to a device; the other device of these tests is `meta`."""

import pytest
import torch
from torch import nn

from diffgan.training.offloading import attach_unregistered, lend


def network():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)).requires_grad_(False).eval()
    return module.to(memory_format=torch.channels_last)


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def test_a_lent_module_is_on_the_device_and_comes_back_unchanged():
    module = network()
    before, values = tensors(module), [tensor.clone() for tensor in tensors(module)]
    with lend(module, "meta"):
        assert {tensor.device.type for tensor in tensors(module)} == {"meta"}
        assert [type(tensor) for tensor in tensors(module)] == [type(tensor) for tensor in before]
        assert module(torch.empty(2, 3, 8, 8, device="meta")).device.type == "meta"
        with lend(module, "meta"):
            pass
        assert module[0].weight.is_meta  # the inner context has moved nothing
    assert all(now is tensor for now, tensor in zip(tensors(module), before, strict=True))
    assert all(torch.equal(now, value) for now, value in zip(tensors(module), values, strict=True))


def test_an_error_brings_it_back_too():
    module = network()
    before = tensors(module)
    with pytest.raises(RuntimeError, match="in the context"), lend(module, "meta"):
        raise RuntimeError("in the context")
    assert all(now is tensor for now, tensor in zip(tensors(module), before, strict=True))


def test_nothing_is_copied_on_the_same_device():
    module = network()
    before = tensors(module)
    with lend(module, torch.device("cpu")):
        assert all(now is tensor for now, tensor in zip(tensors(module), before, strict=True))


def test_what_is_lent_in_a_validation_can_be_used_in_training():
    module = network()
    with torch.inference_mode():
        context = lend(module, "meta")
        context.__enter__()
    assert not any(tensor.is_inference() for tensor in tensors(module))
    context.__exit__(None, None, None)
    assert not any(tensor.is_meta for tensor in tensors(module))


def test_an_unregistered_module_stays_where_it_is():
    owner, module = nn.Module(), network()
    owner.inner = module
    attach_unregistered(owner, "inner", module)
    assert owner.inner is module and not list(owner.parameters()) and not owner.state_dict()
    owner.to("meta")
    assert not any(tensor.is_meta for tensor in tensors(owner.inner))
