"""Accuracy and loss of the classification of latents, with classes that are not known."""

import torch

from diffgan.perceptual.classification import known_cross_entropy, top_k_accuracy

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0]])
LABEL = torch.tensor([0, 2, 2, -1])


def test_top_k_accuracy_by_hand():
    torch.testing.assert_close(top_k_accuracy(LOGITS, LABEL), torch.tensor(2 / 3))
    torch.testing.assert_close(top_k_accuracy(LOGITS, LABEL, k=2), torch.tensor(1.0))
    torch.testing.assert_close(top_k_accuracy(LOGITS, LABEL, k=5), torch.tensor(1.0))


def test_cross_entropy_is_the_mean_over_known_classes():
    expected = -LOGITS.log_softmax(1)[[0, 1, 2], [0, 2, 2]].mean()
    torch.testing.assert_close(known_cross_entropy(LOGITS, LABEL), expected)


def test_no_known_class_gives_no_loss_and_no_gradient():
    logits = LOGITS.clone().requires_grad_(True)
    loss = known_cross_entropy(logits, torch.full((4,), -1))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
