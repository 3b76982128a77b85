"""Digest of a teacher: which weights made a pair set."""

import hashlib
import json

import torch

from diffgan.teachers.base import Teacher


def weights_digest(teacher: Teacher) -> str:
    """Digest of a teacher's weights (denoiser and text encoders), vocabularies and `settings`.

    It depends on the values, not on files and names, so a moved or renamed copy is the same teacher. What else is in
    the configurations of the networks and tokenizers (attention_head_dim, hidden_act, ...) is not in it: two teachers
    that differ in that alone have one digest, though not the same latents. `diffgan pairs verify` sees that.
    """
    plain = [tokenizer.get_vocab() for tokenizer in teacher.tokenizers] + [teacher.settings] * bool(teacher.settings)
    digest = hashlib.blake2b("".join(json.dumps(part, sort_keys=True) for part in plain).encode(), digest_size=16)
    for network in (teacher.unet, *teacher.text_encoders):
        for _, tensor in sorted(network.state_dict().items()):
            digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
