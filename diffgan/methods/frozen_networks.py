"""Networks that a distillation uses and does not train: teacher and moving average, and on which device they are."""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.nets.generator import OneStepGenerator
from diffgan.pairs.batch import PairBatch
from diffgan.teachers.base import Teacher
from diffgan.training.offloading import attach_unregistered, lend

AVERAGE = "generator_ema"


class FrozenNetworks(pl.LightningModule):
    """A module whose teacher stays on the CPU, and whose moving average may.

    A training step needs the teacher's text encoders at most. They go to the module's device when a batch is encoded
    for the first time, in bfloat16 in a `fit` under bf16-mixed; with cached embeddings they never do. Everything else
    of the teacher is lent to the device while a callback uses it:

        with pl_module.teacher_on_device() as teacher, pl_module.average_on_device() as generator:
            images = teacher.decode(generator(noise, teacher.encode(prompts)))

    The teacher is no submodule: Lightning and its strategies do not know it.

    Attributes:
        teacher: the frozen teacher, from `configure_model` on.
        generator_ema: the moving average of the generator, likewise. Validation and test have it on the device.
        ema_on_cpu: keep the average on the CPU; set before `configure_model` by the EMA callback.
    """

    generator_ema: OneStepGenerator

    def __init__(self) -> None:
        super().__init__()
        self.teacher: Teacher | None = None
        self.ema_on_cpu = False
        self._lent_text, self._lent_average = contextlib.ExitStack(), contextlib.ExitStack()

    # ---- the teacher ----

    def keep_teacher(self, teacher: Teacher) -> None:
        """Set `teacher`, on the CPU."""
        attach_unregistered(self, "teacher", teacher)

    def lower_text_precision(self) -> None:
        """Convert the text encoders to bfloat16 if this is a `fit` under bf16-mixed; digests are taken before."""
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit" and trainer.precision == "bf16-mixed":
            for encoder in self.teacher.text_encoders:
                encoder.to(torch.bfloat16)

    @contextlib.contextmanager
    def teacher_on_device(self, denoiser: bool = True) -> Iterator[Teacher]:
        """Context in which the teacher is on the module's device and can encode, decode and solve; contexts nest.

        Args:
            denoiser: also move the network, which `solve` calls and `encode` and `decode` do not.
        """
        parts = [self.teacher] if denoiser else [self.teacher.vae, *self.teacher.text_encoders]
        with contextlib.ExitStack() as stack:
            for part in parts:
                stack.enter_context(lend(part, self.device))
            yield self.teacher

    def encode(self, batch: PairBatch) -> Conditioning:
        """The conditioning of a batch: read with the pairs, or else computed by the teacher's text encoders."""
        if batch.conditioning is not None:
            return batch.conditioning
        if self.teacher.text_device != self.device:
            for encoder in self.teacher.text_encoders:
                self._lent_text.enter_context(lend(encoder, self.device))
        return self.teacher.encode(batch.prompt)

    def teardown(self, stage: str) -> None:
        """Free the device of the text encoders, as Lightning does with what it has moved."""
        self._lent_text.close()

    def omit_from_checkpoints(self, names: set[str]) -> None:
        """Leave weights out of `state_dict`: those that networks share with the teacher, which is loaded anyway."""
        if names:
            self.register_state_dict_post_hook(_Omit(names))

    # ---- the moving average ----

    def keep_average_on_cpu(self) -> None:
        """Keep `generator_ema` where it is. It stays in `state_dict` under the same names.

        Raises:
            UserError: the strategy shards the average.
        """
        if self.device_mesh is not None:
            raise UserError("EMA: on_cpu is not supported with FSDP2, which shards the average; leave on_cpu false")
        attach_unregistered(self, AVERAGE, self.generator_ema)
        self.register_state_dict_post_hook(_save_average)
        self.register_load_state_dict_pre_hook(_load_average)

    @contextlib.contextmanager
    def average_on_device(self) -> Iterator[OneStepGenerator]:
        """Context in which the moving average is on the module's device; contexts nest."""
        with lend(self.generator_ema, self.device):
            yield self.generator_ema

    def on_validation_start(self) -> None:
        """Lend the average to the device for the whole validation."""
        self._lent_average.close()  # still open after a validation that failed
        self._lent_average.enter_context(self.average_on_device())

    def on_validation_end(self) -> None:
        """The average is back on the CPU if it is kept there."""
        self._lent_average.close()

    on_test_start, on_test_end = on_validation_start, on_validation_end


class _Omit:
    """Hook of `state_dict`: remove entries by name."""

    def __init__(self, names: set[str]):
        self.names = names

    def __call__(self, module: FrozenNetworks, state_dict: dict[str, Tensor], prefix: str, _: Any) -> None:
        for name in self.names:
            state_dict.pop(prefix + name, None)


def _save_average(module: FrozenNetworks, state_dict: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Hook of `state_dict`: add the average, which is no submodule."""
    module.generator_ema.state_dict(destination=state_dict, prefix=f"{prefix}{AVERAGE}.")


def _load_average(module: FrozenNetworks, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: take the average's weights out of it; with LoRA those are its adapters alone."""
    own = f"{prefix}{AVERAGE}."
    weights = {name.removeprefix(own): state_dict.pop(name) for name in list(state_dict) if name.startswith(own)}
    if weights:
        module.generator_ema.load_state_dict(weights, strict=False)  # `check_checkpoint` checks their names
