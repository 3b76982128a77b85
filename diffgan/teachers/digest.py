"""Digest of a teacher: identifies the weights that made a pair set."""

import hashlib
import json

import torch

from diffgan.errors import UserError
from diffgan.storage.tensor_files import is_finite
from diffgan.teachers.base import Teacher


def weights_digest(teacher: Teacher) -> str:
    """Digest of a teacher's weights (denoiser and text encoders), vocabularies and `settings`: 32 hexadecimal digits.

    It depends on values, not on files and names, so a moved or renamed copy has the same digest. Other entries in the
    configurations of networks and tokenizers (attention_head_dim, hidden_act, ...) are not part of it: two teachers
    that differ only there have the same digest, though not the same latents. `diffgan pairs verify` finds those.

    Weights that are not finite are refused here, where they are read anyway: that takes a tenth of the digest's time
    (measured on one core: 0.1 s a GB, of the digest 1.1 to 1.5 s).

    Raises:
        UserError: a weight is NaN or infinite.
    """
    digest = hashlib.blake2b(digest_size=16)
    for tokenizer in teacher.tokenizers:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    if teacher.settings:
        digest.update(json.dumps(teacher.settings, sort_keys=True).encode())
    for network in (teacher.denoiser, *teacher.text_encoders):
        for name, tensor in sorted(network.state_dict().items()):
            values = tensor.cpu().reshape(-1).contiguous()
            if not is_finite(values):
                kind = type(network).__name__
                raise UserError(f"teacher: {name} of its {kind} is not finite; restore the files of this teacher")
            digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
