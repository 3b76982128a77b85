"""Beginning a pair set, or continuing one that is there."""

from diffgan.errors import UserError
from diffgan.pairs.manifest import Manifest
from diffgan.teachers.base import Teacher
from diffgan.teachers.digest import weights_digest


def require_teacher(manifest: Manifest, network: Teacher, place: str) -> None:
    """Raises UserError if the network loaded from `place` is not the one that made the set."""
    if (digest := weights_digest(network)) != manifest.teacher_digest:
        raise UserError(
            f"teacher {place}: not the teacher of this set (digest {manifest.teacher_digest} there, {digest} here); "
            "name where it is: --teacher"
        )
