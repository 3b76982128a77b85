"""Precision of float32 computations."""

import pytest
import torch

from diffgan.training.precision import without_tf32

MATMUL, CONVOLUTION = torch.backends.cuda.matmul, torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_float32_matmul_precision()
    new = MATMUL.fp32_precision, CONVOLUTION.fp32_precision
    yield
    torch.set_float32_matmul_precision(before)
    MATMUL.fp32_precision, CONVOLUTION.fp32_precision = new


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_both_settings_of_torch_agree_inside_and_come_back(precision):
    """Where they differ, torch raises an error when it reads one, as a matrix product on a GPU and the compiler do."""
    torch.set_float32_matmul_precision(precision)
    before = MATMUL.fp32_precision, CONVOLUTION.fp32_precision, MATMUL.allow_tf32
    with without_tf32():
        assert not MATMUL.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        assert (MATMUL.fp32_precision, CONVOLUTION.fp32_precision) == ("ieee", "ieee")
    assert torch.get_float32_matmul_precision() == precision
    assert (MATMUL.fp32_precision, CONVOLUTION.fp32_precision, MATMUL.allow_tf32) == before


def test_a_program_that_sets_the_newer_one_alone_keeps_it():
    MATMUL.fp32_precision = "tf32"
    with without_tf32():
        assert MATMUL.fp32_precision == "ieee"
    assert MATMUL.fp32_precision == "tf32"
