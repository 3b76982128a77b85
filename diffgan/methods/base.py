"""Distillation: what every method shares, and what callbacks may rely on."""

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from diffgan.errors import UserError
from diffgan.losses.regression import RegressionLoss
from diffgan.methods.checkpointing import keep_trained, optimized_names
from diffgan.methods.checks import (
    check_datamodule,
    check_latents,
    check_monitors,
    check_pairs,
    check_precision,
    only_timestep,
)
from diffgan.methods.frozen_networks import FrozenNetworks
from diffgan.methods.micro_batches import check_micro_batches
from diffgan.methods.optimization import AlternatingOptimization, OptimizerSettings
from diffgan.methods.rounding import bf16_rms
from diffgan.nets.generator import OneStepGenerator
from diffgan.nets.lora import LoRA, with_adapters
from diffgan.pairs.batch import PairBatch
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.earlier import EARLIER, remedy_for
from diffgan.teachers.registry import checked_size, load_teacher
from diffgan.training import checkpoints, ema
from diffgan.training.checkpoint_io import stream_checkpoints
from diffgan.training.refusals import refusing_together
from diffgan.training.sharing import names_shared
from diffgan.training.strategies import check_strategy, shard

NOT_SHARDED = (
    "lora: FSDP2 would shard the weights that generator, average and discriminator share once for each; use one "
    "GPU, or -c configs/strategies/ddp.yaml"
)
ROUNDED_PAIRS = 4  # pairs on which the rounding error of bfloat16 is measured


class Distillation(AlternatingOptimization, FrozenNetworks, ABC):
    """A training of a one-step generator from the noise-latent pairs of a teacher.

    A method defines `build_networks` and `training_step`. Callbacks may use `teacher_on_device`, `average_on_device`,
    `teacher`, `generator`, `generator_ema`, `images`, `images_seen`, `observed`, `last_checkpoint`,
    `ema_half_life_images`, `ema_on_cpu`, `log_curves` and `stop`.

    Args:
        teacher: pipeline directory, hub id, or "glyphs" for the embedded one.
        regression: distance of the generated latent to the teacher's; validation reports it.
        images: length of the training, in images.
        optimizers: how each network is optimized, by the network's name.
        accumulate: number of micro-batches in which a process computes its share of the batch.
        gradient_checkpointing: recompute the networks' activations in the backward pass instead of storing them.
        compile: apply torch.compile to the networks.
        channels_last: memory format of the networks.
        timesteps: where the student is called, one training timestep; None: the last one.
        float32_output: under bf16-mixed the generator's last block and head compute in float32.
        size: [height, width] of images in pixels; None: the teacher's usual one.
        lora: the generator learns by adapters beside the teacher's weights; None: all its weights are trained.

    Raises:
        UserError: `timesteps` has more than one entry, or `size` not two.
    """

    generator: OneStepGenerator

    def __init__(
        self,
        teacher: str,
        regression: RegressionLoss,
        images: int,
        optimizers: dict[str, OptimizerSettings],
        accumulate: int = 1,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = True,
        timesteps: list[int] | None = None,
        float32_output: bool = False,
        size: list[int] | None = None,
        lora: LoRA | None = None,
    ):
        super().__init__(optimizers)
        self.timestep, self.float32_output = only_timestep(timesteps), float32_output
        self.size, self.lora = checked_size(size), lora
        self.strict_loading = False  # frozen networks are not in checkpoints; `check_checkpoint` checks the rest
        self.teacher_path, self.regression = teacher, regression.requires_grad_(False)
        self.images, self.micro_batch_count = images, accumulate
        self.gradient_checkpointing, self.compile_networks = gradient_checkpointing, compile
        self.channels_last, self.teacher_digest = channels_last, ""
        self.ema_half_life_images = 0.0  # set by the EMA callback

    # ---- networks ----

    @abstractmethod
    def build_networks(self) -> dict[str, nn.Module]:
        """Build the trained networks from `self.teacher` on the CPU, in training mode and float32.

        Sets `self.generator` and one attribute for each further network.

        Returns:
            The networks by name, with the names and the order of `optimizers`. Each has `blocks()` and
            `enable_gradient_checkpointing()`.
        """

    def build_generator(self) -> OneStepGenerator:
        """A one-step generator that begins as the teacher's network, at the student's timestep.

        Raises:
            UserError: a pipeline cannot call a student at that timestep, so none could be exported.
        """
        if self.timestep is not None:
            self.teacher.schedule.ending_at(self.timestep)
        if self.lora is None:
            network = copy.deepcopy(self.teacher.denoiser).requires_grad_(True)
        else:
            network = with_adapters(self.teacher.denoiser, self.lora)
        return OneStepGenerator(network, self.teacher.scheduler, self.timestep, self.float32_output)

    def configure_model(self) -> None:
        """Build everything on the CPU: Lightning, or FSDP2 shard by shard, moves it to the device afterwards."""
        if self.teacher is not None:
            return
        with refusing_together(self._trainer), torch.device("cpu"):
            self._load_teacher()
            self.networks = self.build_networks()
            self.generator_ema = ema.frozen_copy(self.generator, self.teacher.denoiser)
            shared = names_shared(self, self.teacher.denoiser)
            self._prepare_networks()
            self.lower_text_precision()
            if self.ema_on_cpu:
                self.keep_average_on_cpu()
            if shared and self.device_mesh is not None:
                raise UserError(NOT_SHARDED)
        self.omit_from_checkpoints(shared)
        if self.device_mesh is not None:
            all_processes = init_device_mesh(self.device_mesh.device_type, (self.trainer.world_size,))
            for network in (*self.networks.values(), self.generator_ema):
                shard(network, network.blocks(), all_processes)

    def _load_teacher(self) -> None:
        self.keep_teacher(load_teacher(self.teacher_path, size=self.size))
        self.teacher_digest = weights_digest(self.teacher)
        self.regression.check_space(self.teacher.space)
        if self._trainer is not None:  # without a trainer there are no pairs to check
            self.check_data()

    def _prepare_networks(self) -> None:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        for network in (*self.networks.values(), self.generator_ema):
            network.to(memory_format=memory_format)
        for network in self.networks.values():
            network.train()
            if self.gradient_checkpointing:
                network.enable_gradient_checkpointing()
            if self.compile_networks:
                network.compile()

    def train(self, mode: bool = True) -> "Distillation":
        """Set the mode of the trained networks; frozen networks stay in evaluation mode."""
        super().train(mode)
        for frozen in (self.teacher, self.regression, getattr(self, "generator_ema", None)):
            if frozen is not None:
                frozen.eval()
        return self

    # ---- checks ----

    def setup(self, stage: str) -> None:
        """Check the trainer and the batch size."""
        check_strategy(self.trainer.strategy, len(self.settings))
        check_precision(self.trainer.precision)
        stream_checkpoints(self.trainer.strategy)
        if stage == "fit":
            check_monitors(self.trainer.callbacks, self.settings)
            self.check_batch(self.trainer.datamodule.batch_size // self.trainer.world_size)

    def check_data(self) -> None:
        """Raises UserError if there are no pairs, or they were made with another teacher, or in another size."""
        check_datamodule(self.trainer.datamodule)
        check_pairs(self.trainer.datamodule, self.teacher_path, self.teacher_digest)
        check_latents(self.trainer.datamodule, self.teacher)

    def check_new_run(self) -> None:
        """Raises UserError if a training with these settings must not begin, though an earlier one may resume."""

    def check_batch(self, pairs_per_process: int) -> None:
        """Raises UserError if the method cannot train on that many pairs per process."""
        check_micro_batches(pairs_per_process, self.micro_batch_count)

    # ---- course of the training ----

    def on_train_start(self) -> None:
        """Prepare the optimizers of a resumed run and the moving average."""
        self.clear_idle_optimizers()
        for optimizer in self.trainer.optimizers:
            checkpoints.lay_out_as_weights(optimizer)
        self._averaged = ema.following(self.generator_ema, self.generator)
        if self.trainer.precision == "bf16-mixed":
            self._log_rounding()
        self._stop_at_budget()

    def _log_rounding(self) -> None:
        """Log by how much generated latents differ from float32, on the last pairs of the set (collective)."""
        pairs = self.trainer.datamodule.pairs
        held_out = pairs.read(range(max(0, len(pairs) - ROUNDED_PAIRS), len(pairs)))
        batch = self.transfer_batch_to_device(held_out, self.device, 0)
        rms = bf16_rms(self.generator, batch.noise, self.encode(batch))
        self.log_curves({"health/bf16_rms": rms}, self.images_seen)

    def finish_step(self, images: int) -> None:
        """End a training step on `images` images (of all processes): average, clock, curves, budget."""
        half_life = ema.ramped(self.ema_half_life_images, self.images_seen)
        ema.update(self._averaged, ema.decay(images, half_life))
        self.images_seen += images
        every = self.trainer.log_every_n_steps
        if every and self.images_seen // images % every == 0:
            self.log_curves(self.observed, self.images_seen)
        self._stop_at_budget()

    def _stop_at_budget(self) -> None:
        if self.images_seen >= self.images:
            self.trainer.should_stop = True

    def log_curves(self, values: dict[str, Tensor], images_seen: int) -> None:
        """Write one point of each curve to the loggers at once; the axis counts images.

        Args:
            values: by curve, each (); of several processes those of the first are written.
            images_seen: position on the axis.
        """
        if self.loggers:
            numbers = torch.stack([value.float() for value in values.values()]).tolist()
            values = dict(zip(values, numbers, strict=True))
        for logger in self.loggers:
            logger.log_metrics(values, step=images_seen)
            logger.save()

    def rng(self, *stream: int) -> torch.Generator:
        """A random generator that depends on (seed, images seen, rank): resuming needs no stored state.

        Args:
            stream: numbers that distinguish independent uses of one step.
        """
        seed = hash((torch.initial_seed(), self.images_seen, self.global_rank, *stream)) & 0x7FFF_FFFF_FFFF_FFFF
        return torch.Generator().manual_seed(seed)

    # ---- validation ----

    def validation_step(self, batch: PairBatch, _) -> Tensor:
        """Log the distance between the averaged student and the teacher on pairs that training never uses.

        Returns:
            The student's latents, (N, C, H, W), for callbacks.
        """
        generated = self.generator_ema(batch.noise, self.encode(batch))
        fixed = torch.Generator().manual_seed(0)
        distances = {
            "validation/regression": self.regression(generated, batch.latent, fixed).mean(),
            "validation/mse": (generated - batch.latent).square().mean(),
            "step": float(self.images_seen),
        }
        self.log_dict(distances, prog_bar=True, batch_size=len(batch.prompt), sync_dist=True)
        return generated

    test_step = validation_step

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained networks, the clock, and the digest of the teacher.

        Raises:
            UserError: a gradient was not finite since the checkpoint before.
        """
        self.check_gradients()
        self.clear_idle_optimizers()
        checkpoint["images_seen"] = self.images_seen
        checkpoint["teacher_digest"] = self.teacher_digest
        sharded = self.device_mesh is not None
        keep_trained(checkpoint, optimized_names(self, self.trainer.optimizers, sharded))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint and take its clock."""
        if "state_dict" in checkpoint:  # otherwise FSDP2Strategy has checked and loaded it already
            self.check_checkpoint(checkpoint)
        self.images_seen = checkpoint["images_seen"]

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if a checkpoint is of another model or teacher."""
        made_with = checkpoint.get("teacher_digest")
        if made_with != self.teacher_digest and made_with in EARLIER:  # its weights may have other shapes
            raise UserError(f"the checkpoint is of another teacher; {remedy_for(made_with, '')}")
        checkpoints.check_weights(self.state_dict(), checkpoint["state_dict"], self.teacher_path)
        if made_with != self.teacher_digest:
            raise UserError(f"the checkpoint is of another model: its teacher was not {self.teacher_path}")
