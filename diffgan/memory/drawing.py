"""The memory that callbacks take on a GPU while they draw images or latents, between the passes of a training."""

from typing import NamedTuple

from diffgan.memory.simulation import simulate_call, simulate_decoding
from diffgan.memory.tracker import module_bytes
from diffgan.teachers.base import Teacher
from diffgan.teachers.guidance import CLASSIFIER_FREE_GUIDANCE


class Drawing(NamedTuple):
    """What a callback makes at once.

    callback: name of its class.  latents: of one call of a network.  images: decoded.
    by_teacher: the teacher makes latents too, so that its network is on the GPU.
    """

    callback: str
    latents: int
    images: int
    by_teacher: bool

    def __str__(self) -> str:
        made = f"decodes images, {self.images}" if self.images else f"makes latents, {self.latents}"
        lent = "the teacher" if self.by_teacher else "the teacher's decoder"
        return f"{self.callback} {made} at once, with {lent} on the GPU"


def drawing_bytes(drawing: Drawing, teacher: Teacher, lent_network: bool) -> float:
    """Bytes above what is on the GPU anyway, without lent text encoders and a lent average; the teacher becomes fake.

    Args:
        drawing: of one callback.
        teacher: its networks have the shapes of the student's.
        lent_network: the teacher's network is not on the GPU otherwise.
    """
    is_doubled = drawing.by_teacher and teacher.guidance_kind == CLASSIFIER_FREE_GUIDANCE
    computing = simulate_call(teacher, drawing.latents * (2 if is_doubled else 1))
    if drawing.images:
        computing = max(computing, simulate_decoding(teacher, drawing.images))
    lent = module_bytes(teacher.vae) + (module_bytes(teacher.denoiser) if drawing.by_teacher and lent_network else 0)
    return lent + computing
