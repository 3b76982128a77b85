"""The kernels for GPUs: they compute the formula of `heads`. Without a GPU Triton's interpreter runs them."""

import os
import subprocess
import sys

import pytest
import torch

from diffgan.perceptual.heads import tap_distance, taps_distance

pytest.importorskip("triton")

INTERPRETED = """
import torch
from diffgan.perceptual import fused_heads, heads

def grads(distance, features, power):
    x = features[0].clone().requires_grad_(True)
    value = distance([x, *features[1:]])
    (gradient,) = torch.autograd.grad((value * weights).sum(), x, create_graph=power > 1)
    if power > 1:
        (gradient,) = torch.autograd.grad(gradient.square().sum(), x)
    return value.detach(), gradient

torch.manual_seed(0)
weights, eps = torch.tensor([0.5, -2.0]), 1e-10
shapes = [(5, 3, 4), (64, 8, 9), (96, 5, 5)]
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    features, targets = ([torch.randn(2, *shape).relu().to(dtype) for shape in shapes] for _ in range(2))
    all_heads = [torch.rand(shape[0]) for shape in shapes]
    for k in range(3):
        for order in (1, 2) if dtype == torch.float32 else (1,):
            rotate = lambda v: v[k:] + v[:k]
            t, h = rotate(targets), rotate(all_heads)
            fused = lambda f: heads._FusedDistance.apply(fused_heads, eps, *f, *t, *h)
            plain = lambda f: heads.taps_distance(f, t, h, eps)
            for ours, theirs in zip(grads(fused, rotate(features), order), grads(plain, rotate(features), order)):
                assert ours.dtype == theirs.dtype
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 1e-2)
    same = heads._FusedDistance.apply(fused_heads, eps, *features, *features, *all_heads)
    assert torch.equal(same, torch.zeros(2))
heads._compare(fused_heads, torch.device("cpu"))
try:
    heads._compare(type("Wrong", (), {"distances": lambda *_: torch.ones(2)}), torch.device("cpu"))
except AssertionError:
    print("agrees")
"""


def test_interpreted_kernels_compute_the_formula_and_its_derivatives():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment)
    assert result.stdout.split() == ["agrees"], result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_on_a_gpu(dtype, tolerance, recwarn):
    features, targets = ([torch.randn(3, c, 9, 8, device="cuda", dtype=dtype) for c in (64, 512)] for _ in range(2))
    heads = [torch.rand(c, device="cuda") for c in (64, 512)]
    x = features[0].requires_grad_(True)
    fused = taps_distance(features, targets, heads, 1e-10)
    plain = sum(tap_distance(f, t, h, 1e-10) for f, t, h in zip(features, targets, heads, strict=True))
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=0)
    ours, theirs = (torch.autograd.grad(value.sum(), x)[0] for value in (fused, plain))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 1e-3)
    one = [target[:1] for target in targets]
    repeated = taps_distance(features, [target.expand(3, -1, -1, -1) for target in one], heads, 1e-10)
    torch.testing.assert_close(taps_distance(features, one, heads, 1e-10), repeated, rtol=tolerance, atol=0)
    assert not recwarn.list
