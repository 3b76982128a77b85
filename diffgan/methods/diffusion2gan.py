"""Diffusion2GAN: who moves when. Formulas live in `regression`, networks in `nets`, observation in callbacks."""

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses import gan as losses
from diffgan.losses import gradient_penalty, mix_and_match
from diffgan.losses.regression import RegressionLoss
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.nets.generator import OneStepGenerator
from diffgan.pairs.batch import PairBatch
from diffgan.teachers.base import Teacher
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import load_teacher
from diffgan.training import checkpoints, ema
from diffgan.training.lr_schedules import warmup_cooldown
from diffgan.training.strategies import check_strategy, full_tensor, gradient_sync, keep_unsharded, shard

PRECISIONS = ("32-true", "bf16-mixed")
CURVES = ("g", "d", "health")  # groups of what is recorded while training


class Part(NamedTuple):
    """Part of a batch: noise z, teacher's latent x, another pair's x', all (N, C, H, W); replaced (N,) bool; c."""

    noise: Tensor
    latent: Tensor
    other: Tensor
    replaced: Tensor
    conditioning: Conditioning


class Judgement(NamedTuple):
    """L_D of a part of a batch, (), and D's scores of its real and fake samples, (N,)."""

    loss: Tensor
    real: Tensor
    fake: Tensor


class Slopes(NamedTuple):
    """Gradients of L_reg and L_GAN at the generated latents, (N, C, H, W), and the losses' values by curve."""

    regression: Tensor
    adversarial: Tensor | None
    losses: dict[str, Tensor]


class Diffusion2GAN(pl.LightningModule):
    """Distil the teacher into a one-step generator from its noise-latent pairs (paper, section 3).

    One batch:
        x^ = G(z, c)                                          one generator pass
        D moves down  L_D(x, x^, z, c), and lazily R1         if there is an adversary and it has begun
        G moves down  L_reg(x^, x) + lambda_GAN softplus(-D(x^, z, c))
        G_ema follows G

    The clock counts images: `images_seen` is global over processes and saved with the weights. Losses, norms and D's
    opinions of the newest batch are in `observed`; every `log_every_n_steps` batches they become points of curves. What
    Lightning's callbacks monitor are the figures of validation.

    Args:
        teacher: pipeline directory, hub id, or "glyphs" for the embedded one.
        regression: distance of the generated latent to the teacher's.
        generator_optimizer: called with the generator's parameters.
        images: length of the training, in images.
        adversary: the discriminator and its rules; without it the training is regression alone.
        warmup_images, cooldown_images: linear rise and final linear fall of the learning rates.
        clip_norm: largest norm of the generator's gradient.
        accumulate: parts in which a process takes its share of the batch, one after the other.
        gradient_checkpointing: compute the networks' activations again in the backward pass instead of keeping them.
        compile: torch.compile both networks; the gradient penalty stays eager.
        channels_last: memory layout of the networks (faster on CPUs and tensor cores).
    """

    def __init__(
        self,
        teacher: str,
        regression: RegressionLoss,
        generator_optimizer: OptimizerCallable,
        images: int,
        adversary: AdversarialTraining | None = None,
        warmup_images: int = 1000,
        cooldown_images: int = 0,
        clip_norm: float = 1.0,
        accumulate: int = 1,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = True,
    ):
        super().__init__()
        if not clip_norm > 0:
            raise UserError(f"clip_norm: {clip_norm} must be above 0")
        if adversary is not None and adversary.starts_at_images >= images:
            begins = adversary.starts_at_images
            raise UserError(f"adversary: starts_at_images is {begins}, but the training ends after {images} images")
        self.automatic_optimization = False
        self.strict_loading = False  # frozen networks are left out; `on_load_checkpoint` checks the rest
        self.teacher_path, self.regression = teacher, regression.requires_grad_(False)
        self.generator_optimizer, self.images, self.adversary = generator_optimizer, images, adversary
        self.rates = {"g": warmup_cooldown(warmup_images, cooldown_images, images)}
        if adversary is not None:
            self.rates["d"] = adversary.learning_rate_factor(cooldown_images, images)
        self.clip_norm, self.accumulate = clip_norm, accumulate
        self.gradient_checkpointing, self.compile_networks = gradient_checkpointing, compile
        self.channels_last = channels_last
        self.ema_half_life_images = 0.0  # set by the EMA callback
        self.last_checkpoint: Path | None = None  # set by the ImageCheckpoint callback
        self.teacher: Teacher | None = None
        self.images_seen = 0
        self.observed: dict[str, Tensor] = {}  # losses, norms and opinions of the newest batch, by curve

    # ---- building ----

    def configure_model(self) -> None:
        """Build the networks on the CPU: Lightning, or FSDP shard by shard, moves them to the device afterwards."""
        if self.teacher is not None:
            return
        with torch.device("cpu"):
            self._build_networks()
        if self.device_mesh is not None:
            everyone = init_device_mesh(self.device_mesh.device_type, (self.trainer.world_size,))  # of all machines
            for network in (*self._networks().values(), self.generator_ema):
                shard(network, network.blocks(), everyone)

    def _build_networks(self) -> None:
        self.teacher = load_teacher(self.teacher_path)
        self.teacher_digest = weights_digest(self.teacher)
        self.regression.check_space(self.teacher.space)
        self._check_pairs()
        self.generator = OneStepGenerator(copy.deepcopy(self.teacher.unet).requires_grad_(True), self.teacher.scheduler)
        self.discriminator = None if self.adversary is None else self.adversary.opponent(self.teacher.unet)
        self.generator_ema = ema.frozen_copy(self.generator)
        for network in (*self._networks().values(), self.generator_ema):
            network.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        for network in self._networks().values():
            self._prepare(network)

    def _networks(self) -> dict[str, nn.Module]:
        """The players by the letter their curves are filed under."""
        return {"g": self.generator} | ({} if self.discriminator is None else {"d": self.discriminator})

    def _prepare(self, network: nn.Module) -> None:
        network.train()
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.compile_networks:
            network.compile()

    def _check_pairs(self) -> None:
        """Refuse pairs that another teacher made."""
        if self._trainer is None:  # built outside a run: there are no pairs
            return
        manifest = self.trainer.datamodule.pairs.manifest
        if manifest.teacher_digest != self.teacher_digest:
            raise UserError(
                f"{self.trainer.datamodule.folder}: the pairs are of another teacher (made with {manifest.teacher}, "
                f"whose weights differ from those of {self.teacher_path}); name that teacher, or make new pairs"
            )

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy, networks=1 if self.adversary is None else 2)
        if self.trainer.precision not in PRECISIONS:
            raise UserError(f"precision {self.trainer.precision} is not supported; use one of {', '.join(PRECISIONS)}")
        if stage == "fit":
            self._check_monitors()
            self._check_batch(self.trainer.datamodule.batch_size // self.trainer.world_size)

    def _check_monitors(self) -> None:
        """Refuse a callback (EarlyStopping, ModelCheckpoint) that waits for what Lightning is not told."""
        for callback in self.trainer.callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor and monitor.split("/")[0] in CURVES:
                raise UserError(
                    f"{type(callback).__name__}: monitor {monitor} is a curve of the training; name a figure of "
                    "validation, such as validation/mse"
                )

    def _check_batch(self, share: int) -> None:
        if self.accumulate < 1 or share % self.accumulate:
            raise UserError(f"accumulate: {share} pairs per process do not divide into {self.accumulate} equal parts")
        if self.adversary is not None:
            self.adversary.check_batch(share, self.trainer.world_size)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        makers = {"g": self.generator_optimizer, "d": self.adversary and self.adversary.optimizer}
        players = {name: makers[name](network.parameters()) for name, network in self._networks().items()}
        self._player = {id(optimizer): name for name, optimizer in players.items()}
        self._learning_rates = {  # a checkpoint brings those it had
            name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in players.items()
        }
        return list(players.values())

    def train(self, mode: bool = True) -> "Diffusion2GAN":
        super().train(mode)
        for frozen in (self.teacher, self.regression, getattr(self, "generator_ema", None)):
            if frozen is not None:
                frozen.eval()
        return self

    # ---- the algorithm ----

    def training_step(self, batch: PairBatch, _) -> None:
        self.observed = {}
        parts = self._parts(batch)
        generated = self._generate(parts)
        if self.adversary_plays:
            self._move_discriminator(parts, generated)
        self._move_generator(parts, generated)
        self._advance(len(batch.prompt) * self.trainer.world_size)

    def _generate(self, parts: list[Part]) -> list[Tensor]:
        """x^ = G(z, c), with its graph for the generator's own move if there is one part only."""
        with torch.set_grad_enabled(len(parts) == 1):
            return [self.generator(part.noise, part.conditioning) for part in parts]

    def _move_discriminator(self, parts: list[Part], generated: list[Tensor]) -> None:
        """D moves down L_D, and in its turn down the gradient penalty."""
        with self._moving("d") as optimizer:
            judged = []
            for i, (part, fake) in enumerate(zip(parts, generated, strict=True)):
                with gradient_sync(self, self.discriminator, i == len(parts) - 1):
                    judged.append(self._judge(part, fake.detach()))
                    self.manual_backward(judged[-1].loss / len(parts))
            self._penalize_gradient(parts)
            optimizer.step()
        real, fake = (torch.cat(scores) for scores in zip(*((j.real, j.fake) for j in judged), strict=True))
        self.observed["d/loss"] = torch.stack([judgement.loss.detach() for judgement in judged]).mean()
        self.observed |= losses.opinions(real, fake, torch.cat([part.replaced for part in parts]))

    def _judge(self, part: Part, generated: Tensor) -> Judgement:
        """L_D = softplus(-D(x, z, c)) + softplus(D(x^, z, c)), x^ in part replaced by x'."""
        fakes = mix_and_match.mix_and_match(generated, part.other, part.replaced)
        real, fake = self.adversary.judge(self.discriminator, part.latent, fakes, part.noise, part.conditioning)
        loss = (losses.non_saturating(real, +1) + losses.non_saturating(fake, -1)).mean()
        return Judgement(loss, losses.score(real).detach(), losses.score(fake).detach())

    def _penalize_gradient(self, parts: list[Part]) -> None:
        """(gamma / 2) |grad_x D(x, z, c)|^2 on a rotating sample, every `r1_every` steps."""
        share = sum(len(part.noise) for part in parts)
        turn = self.adversary.r1_turn(self.images_seen, share * self.trainer.world_size)
        if turn is None:
            return
        rows = list(gradient_penalty.rotating_rows(share, self.adversary.r1_share(self.trainer.world_size), turn))
        latent, noise = (torch.cat(tensors)[rows] for tensors in ([p.latent for p in parts], [p.noise for p in parts]))
        conditioning = Conditioning.cat([part.conditioning for part in parts]).map(lambda tensor: tensor[rows])
        with gradient_penalty.second_derivatives(self.device), keep_unsharded(self.discriminator):
            loss = self.adversary.r1_loss(self.discriminator, latent, noise, conditioning)
            self.manual_backward(loss)
        self.record({"d/r1": loss.detach()}, self.images_seen + share * self.trainer.world_size)

    def _move_generator(self, parts: list[Part], generated: list[Tensor]) -> None:
        """G moves down L_reg + lambda_GAN L_GAN, through the gradient at x^."""
        with self._moving("g") as optimizer:
            gradients = self._gradients_at(generated, parts)
            for i, (part, latent, gradient) in enumerate(zip(parts, generated, gradients, strict=True)):
                if len(parts) > 1:
                    latent = self.generator(part.noise, part.conditioning)
                with gradient_sync(self, self.generator, i == len(parts) - 1):
                    self.manual_backward(latent, gradient=gradient / len(parts))
            optimizer.step()

    def _gradients_at(self, generated: list[Tensor], parts: list[Part]) -> list[Tensor]:
        """Gradient of L_G at the generated latents of each part."""
        random = self._random()
        slopes = [self._slopes(latent.detach(), part, random) for latent, part in zip(generated, parts, strict=True)]
        for name in slopes[0].losses:
            self.observed[name] = torch.stack([slope.losses[name] for slope in slopes]).mean()
        if not self.adversary_plays:
            return [slope.regression for slope in slopes]
        weight = self.adversary.weight
        if self.adversary.balanced:
            norms = (sum(g.float().square().sum() for g in of) for of in zip(*(s[:2] for s in slopes), strict=True))
            ratio = losses.balance(*(self.trainer.strategy.reduce(norm, reduce_op="mean") for norm in norms))
            self.observed["g/gradient_ratio"] = ratio
            weight = weight * ratio
        return [slope.regression + weight * slope.adversarial for slope in slopes]

    def _slopes(self, latent: Tensor, part: Part, random: torch.Generator) -> Slopes:
        """Gradients of both losses at x^: a loss's graph is gone before the next; D's weights get no gradient."""
        latent.requires_grad_(True)
        regression = self.regression(latent, part.latent, random).mean()
        found = {"g/regression": regression.detach()}
        (slope,) = torch.autograd.grad(regression, latent)
        if not self.adversary_plays:
            return Slopes(slope, None, found)
        adversarial = losses.non_saturating(self.discriminator(latent, part.noise, part.conditioning), +1).mean()
        (push,) = torch.autograd.grad(adversarial, latent)
        return Slopes(slope, push, found | {"g/adversarial": adversarial.detach()})

    def on_before_optimizer_step(self, optimizer) -> None:
        name = self._player[id(optimizer)]
        limit = self.clip_norm if name == "g" else self.adversary.clip_norm
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.observed[f"{name}/gradient_norm"] = full_tensor(norm)
        size = self.observed[f"{name}/gradient_norm"].item()
        if not math.isfinite(size):
            self.stop(f"{name}: the gradient's norm is {size}; lower the learning rate")
        if size > limit:  # else it would only be multiplied by 1
            clip_grads_with_norm_(parameters, limit, norm)

    # ---- parts of the algorithm ----

    @property
    def adversary_plays(self) -> bool:
        return self.adversary is not None and self.images_seen >= self.adversary.starts_at_images

    def _parts(self, batch: PairBatch) -> list[Part]:
        """This process's share of the batch, in as many parts as gradients are accumulated over."""
        count, share = self.accumulate, self.adversary.mismatch_share if self.adversary_plays else 0.0
        other = mix_and_match.neighbours(batch.latent) if share else batch.latent
        replaced = mix_and_match.mismatched(len(batch.latent), share, self.device)
        conditioning = self._encode(batch)
        conditionings = [conditioning.map(lambda tensor, i=i: tensor.chunk(count)[i]) for i in range(count)]
        tensors = (tensor.chunk(count) for tensor in (batch.noise, batch.latent, other, replaced))
        return [Part(*of) for of in zip(*tensors, conditionings, strict=True)]

    def _encode(self, batch: PairBatch) -> Conditioning:
        """What the networks are told of the prompts: read with the pairs, or made here."""
        return self.teacher.encode(batch.prompt) if batch.conditioning is None else batch.conditioning

    @contextlib.contextmanager
    def _moving(self, name: str) -> Iterator[LightningOptimizer]:
        """One player moves: the others' parameters are constants, its gradients are gone afterwards."""
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        optimizer = optimizers[list(self._networks()).index(name)]
        for group, learning_rate in zip(optimizer.param_groups, self._learning_rates[name], strict=True):
            group["lr"] = self.rates[name](self.images_seen) * learning_rate
        with self.toggled_optimizer(optimizer):
            yield optimizer
            optimizer.zero_grad()

    def _advance(self, images: int) -> None:
        """G_ema follows G; the clock moves; the budget ends the training."""
        factor = ema.decay(images, ema.ramped(self.ema_half_life_images, self.images_seen))
        ema.update(self._following, factor)
        self.images_seen += images
        every = self.trainer.log_every_n_steps
        if every and self.images_seen // images % every == 0:
            self.record(self.observed, self.images_seen)
        self._stop_at_budget()

    def stop(self, reason: str) -> NoReturn:
        """End a run that has gone wrong, before its weights do; raises UserError."""
        last = self.last_checkpoint
        good = last.with_name(checkpoints.GOOD) if last and last.with_name(checkpoints.GOOD).is_file() else last
        raise UserError(f"stopped after {self.images_seen} images: {reason}. Last good checkpoint: {good}")

    def record(self, values: dict[str, Tensor], images_seen: int) -> None:
        """Points of curves, to disk (of the first process, where there are several); their axis counts images."""
        if self.loggers:
            values = dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))
        for logger in self.loggers:
            logger.log_metrics(values, step=images_seen)
            logger.save()

    def on_train_start(self) -> None:
        self._forget_idle_optimizer()
        for optimizer in self.trainer.optimizers:
            checkpoints.lay_out_as_weights(optimizer)
        self._following = ema.following(self.generator_ema, self.generator)
        self._stop_at_budget()

    def _stop_at_budget(self) -> None:
        if self.images_seen >= self.images:
            self.trainer.should_stop = True

    def _random(self) -> torch.Generator:
        """Randomness as a function of (seed, images seen, rank): resuming needs no stored generator."""
        seed = hash((torch.initial_seed(), self.images_seen, self.global_rank)) & 0x7FFF_FFFF_FFFF_FFFF
        return torch.Generator().manual_seed(seed)

    # ---- held-out pairs ----

    def validation_step(self, batch: PairBatch, _) -> None:
        """Trajectory fidelity: distance of student and teacher on pairs that training never saw."""
        generated = self.generator_ema(batch.noise, self._encode(batch))
        fixed = torch.Generator().manual_seed(0)
        distances = {
            "validation/regression": self.regression(generated, batch.latent, fixed).mean(),
            "validation/mse": (generated - batch.latent).square().mean(),
            "step": float(self.images_seen),
        }
        self.log_dict(distances, prog_bar=True, batch_size=len(batch.prompt), sync_dist=True)

    test_step = validation_step

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self._forget_idle_optimizer()
        checkpoint["images_seen"] = self.images_seen
        checkpoint["teacher_digest"] = self.teacher_digest
        weights = {n: weight for n, weight in checkpoint["state_dict"].items() if not n.startswith(checkpoints.FROZEN)}
        checkpoint["state_dict"] = checkpoints.contiguous(weights)
        states = zip(checkpoint["optimizer_states"], self._optimized_names(), strict=True)
        checkpoint["optimizer_states"] = checkpoints.contiguous([checkpoints.keyed_by_name(*of) for of in states])

    def _optimized_names(self) -> list[list[str]]:
        """Names of the weights that each optimizer's state counts: its own, or under FSDP those of the whole module."""
        everything = [name for name, _ in self.named_parameters()]
        players = ("generator.", "discriminator.")[: len(self._networks())]
        if self.device_mesh is not None:
            return [everything] * len(players)
        return [[name for name in everything if name.startswith(player)] for player in players]

    def _forget_idle_optimizer(self) -> None:
        """To save or load an optimizer that has not moved, FSDP makes it step once at rate 0: a first step too many."""
        if self.adversary is not None and self.images_seen <= self.adversary.starts_at_images:
            self.optimizers()[1].state.clear()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "state_dict" in checkpoint:  # else the strategy has checked and loaded it already, shard by shard
            self.check_checkpoint(checkpoint)
        self.images_seen = checkpoint["images_seen"]

    def check_checkpoint(self, checkpoint: dict) -> None:
        """Raises UserError if a checkpoint is of another model or teacher."""
        checkpoints.check_weights(self.state_dict(), checkpoint["state_dict"], self.teacher_path)
        if checkpoint["teacher_digest"] != self.teacher_digest:
            raise UserError(f"the checkpoint is of another model: its teacher was not {self.teacher_path}")
