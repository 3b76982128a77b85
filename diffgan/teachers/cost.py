"""What a teacher's network costs, from its configuration alone: no weights are loaded."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from diffgan.errors import UserError, first_line
from diffgan.teachers import solvers
from diffgan.teachers.base import SCHEDULER
from diffgan.teachers.registry import resolve_path

TIME_IDS = 6  # sizes and crop that an SDXL network is told
HALF = 2  # bytes


class Network:
    """A teacher's network without its weights.

    Attributes:
        latent_shape: (C, H, W).
        tokens: rows of text the network is given for a prompt.

    Raises:
        UserError: the teacher's configuration cannot be read.
    """

    def __init__(self, teacher: str):
        self.teacher, path = teacher, resolve_path(teacher)
        try:
            self.config = UNet2DConditionModel.load_config(path, subfolder="unet")
            self.tokens = AutoConfig.from_pretrained(path, subfolder="text_encoder").max_position_embeddings
            self.schedule = DDIMScheduler.from_pretrained(path, subfolder="scheduler", **SCHEDULER)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"teacher {teacher}: its configuration cannot be read ({reason})") from error
        side = self.config["sample_size"]
        self.latent_shape = (self.config["in_channels"], side, side)

    def calls(self, steps: int, solver: str) -> int:
        """Network calls of `steps` steps of a solver; UserError if there is no such solver, or not so many steps."""
        most = self.schedule.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise UserError(f"steps: {steps} is not between 1 and the teacher's {most} timesteps")
        built = solvers.solver(solver, self.schedule)
        built.set_timesteps(steps)
        return len(built.timesteps)

    def flops(self) -> int:
        """Floating-point operations of one call with one latent, a multiplication and an addition counted as two."""
        with torch.device("meta"), torch.no_grad():
            unet = UNet2DConditionModel.from_config(self.config)
            text = torch.empty(1, self.tokens, unet.config.cross_attention_dim)
            with FlopCounterMode(display=False) as counter:
                unet(torch.empty(1, *self.latent_shape), 0, text, added_cond_kwargs=self._added(unet))
        return counter.get_total_flops()

    def embedding_bytes(self) -> int:
        """What one prompt's embeddings would take in float16."""
        values = self.tokens * self.config["cross_attention_dim"]
        return HALF * (values + (self._pooled_width() if self._takes_sizes() else 0))

    def _takes_sizes(self) -> bool:
        return self.config.get("addition_embed_type") == "text_time"

    def _pooled_width(self) -> int:
        return self.config["projection_class_embeddings_input_dim"] - TIME_IDS * self.config["addition_time_embed_dim"]

    def _added(self, unet: UNet2DConditionModel) -> dict[str, torch.Tensor] | None:
        if not self._takes_sizes():
            return None
        return {"text_embeds": torch.empty(1, self._pooled_width()), "time_ids": torch.empty(1, TIME_IDS)}
