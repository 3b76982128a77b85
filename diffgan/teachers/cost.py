"""The cost of a teacher's network, from its configuration alone: no weights are loaded."""

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError, first_line
from diffgan.latent_space import LatentSpace
from diffgan.teachers import solvers
from diffgan.teachers.denoiser import ADAPTERS
from diffgan.teachers.guidance import CLASSIFIER_FREE_GUIDANCE, check_guidance
from diffgan.teachers.registry import family_of, resolve_path


class NetworkCost:
    """Operations, network calls and bytes that a teacher's pairs take.

    Args:
        teacher: "glyphs", a pipeline directory or a hub id.
        size: (height, width) of images in pixels; None: the model's usual one.

    Attributes:
        latent_shape: (C, H, W) of one latent.
        tokens: rows of text embeddings for one prompt.

    Raises:
        UserError: the teacher's configuration cannot be read.
    """

    def __init__(self, teacher: str, size: list[int] | None = None):
        path = resolve_path(teacher)
        family = family_of(path)
        self.pipeline = family.pipeline_class.__name__
        self.network_class, self.adapter = family.network_class, ADAPTERS[family.network_class]
        try:
            self.config = self.network_class.load_config(path, subfolder=self.adapter.component)
            self.tokens = family.prompt_tokens(AutoConfig.from_pretrained(path, subfolder="text_encoder"))
            self.schedule = family.schedule_class.load(path)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"teacher {teacher}: its configuration cannot be read ({reason})") from error
        self.latent_shape = self._sized(path, size)

    def _sized(self, path: str, size: list[int] | None) -> tuple[int, int, int]:
        if size is None:
            return self.adapter.latent_shape(self.config)
        vae = LatentSpace.of_config(AutoencoderKL.load_config(path, subfolder="vae"))
        return self.adapter.latent_of_size(self.config, vae.factor, *size)

    def calls(self, steps: int, solver: str | None) -> int:
        """Network calls for one pair without guidance.

        Args:
            steps: of the solver.
            solver: name of a deterministic scheduler class of diffusers; None: the one that states the schedule.

        Raises:
            UserError: as in `Teacher.solver`.
        """
        self.schedule.check_steps(steps)
        scheduler = solvers.solver(solver or self.schedule.own_solver, self.schedule.scheduler)
        self.schedule.set_timesteps(scheduler, steps, self.adapter.image_tokens(self.config, *self.latent_shape[1:]))
        return len(scheduler.timesteps)

    def rows(self, guidance: float) -> int:
        """Latents that the network computes in one call for one pair: two with classifier-free guidance, else one.

        Raises:
            UserError: the network cannot be guided, and `guidance` is not 1.
        """
        kind = self.adapter.guidance_kind(self.config)
        check_guidance(kind, guidance, self.pipeline)
        return 2 if guidance != 1 and kind == CLASSIFIER_FREE_GUIDANCE else 1

    def flops(self) -> int:
        """Floating-point operations of one call with one latent; a multiplication with an addition counts as two."""
        with torch.device("meta"), torch.no_grad():
            network = self.network_class.from_config(self.config)
            latent = torch.empty(1, *self.latent_shape)  # (1, C, H, W)
            with FlopCounterMode(display=False) as counter:
                self.adapter.predict(network, latent, 0, self._empty_conditioning())
        return counter.get_total_flops()

    def embedding_bytes(self) -> int:
        """Bytes of one prompt's conditioning as `pairs embed` stores it, where the text encoders are float32."""
        return sum(tensor.nbytes for tensor in self._empty_conditioning() if tensor is not None)

    def _empty_conditioning(self) -> Conditioning:
        with torch.device("meta"):
            return self.adapter.empty_conditioning(self.config, self.tokens)
