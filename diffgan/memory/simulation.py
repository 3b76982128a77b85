"""One training step of Diffusion2GAN on fake tensors: the memory of each pass above the weights.

The passes call the project's own networks and losses in the order of `Diffusion2GAN.training_step`, on the shapes of
one process's batch. Nothing is computed and nothing of that size is allocated. Of several micro-batches the first two
are simulated: the second one finds gradients in place, the others repeat it.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from diffgan.errors import UserError
from diffgan.losses import gan
from diffgan.losses.gradient_penalty import full_precision, r1_loss
from diffgan.memory.gpu_autocast import autocast, gpu_lists
from diffgan.memory.networks import make_fake
from diffgan.memory.tracker import MemoryTracker, storage_bytes
from diffgan.methods import outputs
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.methods.micro_batches import MicroBatch, Samples, split, take
from diffgan.nets.lora import trainable
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import adapter_for

CPU = torch.device("cpu")
BATCH = "batch"
GENERATOR = "generator, forward"
DISCRIMINATOR = "discriminator step"
R1 = "R1"
REGRESSION = "regression loss"
GAN_GRADIENT = "GAN gradient through D"
BACKWARD = "generator, backward"
VALIDATION = "validation"


class Pass(NamedTuple):
    """name: of a part of the training step.  network: the one it calls: "g", "d", or "" for the regression loss.

    backward: whether it has a backward pass.  peak: bytes above the weights and optimizer states, by the pass that
    allocated them, or `tracker.GRADIENTS`.
    """

    name: str
    network: str
    backward: bool
    peak: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(self.peak.values())


def simulate_decoding(teacher: Teacher, images: int) -> float:
    """Bytes that decoding so many images in float32 takes above the weights; the teacher's VAE becomes fake."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(teacher.vae)
        tracker = MemoryTracker()
        tracker.ignore([*teacher.vae.parameters(), *teacher.vae.buffers()])
        latent = torch.empty(images, *teacher.latent_shape)
        with tracker, tracker.measure("decoding"):
            teacher.decode(latent)
    return sum(tracker.peak.values())


def simulate_call(teacher: Teacher, rows: int) -> float:
    """Bytes that a call of the network takes above its weights, in float32 without gradient; it becomes fake."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(teacher.denoiser)
        tracker = MemoryTracker()
        tracker.ignore([*teacher.denoiser.parameters(), *teacher.denoiser.buffers()])
        samples, t = empty_samples(teacher, rows), torch.zeros(rows, dtype=torch.int64)
        with tracker, tracker.measure("call"), torch.no_grad():
            adapter_for(teacher.denoiser).predict(teacher.denoiser, samples.noise, t, samples.conditioning)
    return sum(tracker.peak.values())


def empty_samples(teacher: Teacher, count: int) -> Samples:
    """Uninitialised pairs with their conditioning, of the teacher's shapes."""
    tokens = teacher.prompt_tokens(teacher.text_encoders[0].config)
    one = adapter_for(teacher.denoiser).empty_conditioning(teacher.denoiser.config, tokens)
    conditioning = one.map(lambda row: torch.empty(count, *row.shape[1:]))
    return Samples(*torch.empty(2, count, *teacher.latent_shape), conditioning)


class Step(NamedTuple):
    """passes: in their order.  states: bytes of optimizer states by network."""

    passes: list[Pass]
    states: dict[str, int]


def build_networks(module: Diffusion2GAN, teacher: Teacher) -> None:
    """Build a method's networks without values, from a teacher on the meta device."""
    module.teacher = teacher
    with torch.device("meta"):
        module.networks = module.build_networks()
    for network in module.networks.values():
        if module.channels_last:
            network.to(memory_format=torch.channels_last)
        network.train()
        if module.gradient_checkpointing:
            network.enable_gradient_checkpointing()


def simulate_step(
    module: Diffusion2GAN, pairs: int, mixed: bool, processes: int = 1, gradient_share: float = 1.0
) -> Step:
    """The memory of every pass of a step.

    Args:
        module: with networks made by `build_networks`; they become fake tensors.
        pairs: of one process.
        mixed: bf16-mixed precision, else float32.
        processes: of the whole run.
        gradient_share: as in `MemoryTracker`.

    Raises:
        UserError: an optimizer needs the values of tensors.
    """
    with gpu_lists(), FakeTensorMode(allow_non_fake_inputs=True):
        simulation = _Simulation(module, pairs, mixed, processes, gradient_share)
        states = {name: simulation.prepare_optimizer(name) for name in module.networks}
        with simulation.tracker:
            simulation.run()
    return Step(simulation.passes, states)


class _Simulation:
    def __init__(self, module: Diffusion2GAN, pairs: int, mixed: bool, processes: int, gradient_share: float):
        self.module, self.pairs, self.mixed, self.processes = module, pairs, mixed, processes
        self.tracker, self.passes = MemoryTracker(gradient_share), []
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for part in (*module.networks.values(), module.regression):
            make_fake(part)
            self.tracker.ignore([*part.parameters(), *part.buffers()])
        self.trained = {name: trainable(network) for name, network in module.networks.items()}
        for weights in self.trained.values():
            self.tracker.follow_gradients(weights)

    # ---- optimizers ----

    def prepare_optimizer(self, name: str) -> int:
        """Let an optimizer make its states; returns their bytes."""
        optimizer = self.module.settings[name].optimizer(self.trained[name])
        for group in optimizer.param_groups:
            if group.get("foreach", True) is None and not group.get("fused"):
                group["foreach"] = True  # torch's default on a GPU
        for parameter in self.trained[name]:
            parameter.grad = torch.empty_like(parameter)
        try:
            optimizer.step()
        except DataDependentOutputException as error:
            kind = type(optimizer).__name__
            raise UserError(f"plan: the step of {kind} depends on values, so its memory cannot be simulated") from error
        optimizer.zero_grad()
        states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        self.tracker.ignore(states)
        self.optimizers[name] = optimizer
        return storage_bytes(states)

    def _optimizer_step(self, name: str) -> None:
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()

    # ---- passes ----

    @contextlib.contextmanager
    def _pass(self, name: str, network: str, backward: bool, mixed: bool | None = None) -> Iterator[None]:
        with self.tracker.measure(name), autocast(self.mixed if mixed is None else mixed):
            yield
        self.passes.append(Pass(name, network, backward, self.tracker.peak))

    def run(self) -> None:
        """One step with the discriminator, if there is one; then one batch of validation."""
        module = self.module
        with self.tracker.measure(BATCH):
            micro_batches = self._micro_batches()
        with self._pass(GENERATOR, "g", backward=False):
            generated = module.generate(micro_batches)
        if module.adversarial is not None:
            self._train_discriminator(micro_batches, generated)
        self._train_generator(micro_batches, generated)
        del generated
        with self._pass(VALIDATION, "g", backward=False), torch.no_grad():
            self._validate()

    def _micro_batches(self) -> list[MicroBatch]:
        """As `Diffusion2GAN.split_batch`: the first two."""
        pairs = empty_samples(self.module.teacher, self.pairs)
        whole = MicroBatch(pairs, pairs.map(torch.clone), torch.empty(self.pairs), torch.zeros_like(pairs.latent))
        return split(whole, self.module.micro_batch_count)[:2]

    def _train_discriminator(self, micro_batches: list[MicroBatch], generated: list[Tensor]) -> None:
        with self._training("d") as discriminator:
            with self._pass(DISCRIMINATOR, "d", backward=True):
                for micro_batch, latent in zip(*outputs.real_and_fake(micro_batches, generated), strict=True):
                    output = outputs.discriminator_output(discriminator, micro_batch, latent)
                    output.loss.backward()
                    del output
            if self.module.adversarial.r1_gamma:
                with self._pass(R1, "d", backward=True, mixed=False):
                    self._penalise(discriminator, micro_batches)
            with self._pass(f"{DISCRIMINATOR}, optimizer", "", backward=False):
                self._optimizer_step("d")

    def _penalise(self, discriminator: nn.Module, micro_batches: list[MicroBatch]) -> None:
        settings = self.module.adversarial
        available = sum(len(micro_batch.kinds) for micro_batch in micro_batches)
        rows = [row % available for row in range(settings.r1_samples_per_process(self.processes))]
        samples = take(micro_batches, rows)
        with full_precision(CPU, settings.r1.second_derivatives):
            r1_loss(settings.r1, discriminator, *samples, settings.r1_gamma, settings.r1_noise).loss.backward()

    def _train_generator(self, micro_batches: list[MicroBatch], generated: list[Tensor]) -> None:
        with self._training("g") as generator:
            gradients = self._output_gradients(micro_batches, generated)
            with self._pass(BACKWARD, "g", backward=True):
                for i, (micro_batch, gradient) in enumerate(zip(micro_batches, gradients, strict=True)):
                    latent, generated[i] = generated[i], None
                    if len(micro_batches) > 1:
                        latent = generator(micro_batch.pairs.noise, micro_batch.pairs.conditioning)
                    latent.backward(gradient)
                    del latent
            with self._pass("generator, optimizer", "", backward=False):
                self._optimizer_step("g")

    def _output_gradients(self, micro_batches: list[MicroBatch], generated: list[Tensor]) -> list[Tensor]:
        """dL_G/dx^ of each micro-batch."""
        gradients = []
        for micro_batch, latent in zip(micro_batches, generated, strict=True):
            latent = latent.detach().requires_grad_(True)
            with self._pass(REGRESSION, "", backward=True):
                loss = self.module.regression(latent, micro_batch.pairs.latent, torch.Generator()).mean()
                (gradient,) = torch.autograd.grad(loss, latent)
            if self.module.adversarial is not None:
                with self._pass(GAN_GRADIENT, "d", backward=True):
                    inputs = (latent + micro_batch.input_noise, micro_batch.pairs.noise, micro_batch.pairs.conditioning)
                    read_outs = self.module.discriminator(*inputs)
                    loss = gan.generator_loss(read_outs)
                    del read_outs
                    gradient = gradient + torch.autograd.grad(loss, latent)[0]
            gradients.append(gradient)
        return gradients

    def _validate(self) -> None:
        """As `Distillation.validation_step`, on all pairs of a process at once."""
        batch = empty_samples(self.module.teacher, self.pairs)
        generated = self.module.generator(batch.noise, batch.conditioning)
        self.module.regression(generated, batch.latent, torch.Generator())

    @contextlib.contextmanager
    def _training(self, name: str) -> Iterator[nn.Module]:
        """The network of this name; the weights of the others get no gradients."""
        for other, weights in self.trained.items():
            for weight in weights:
                weight.requires_grad_(other == name)
        yield self.module.networks[name]
        for weights in self.trained.values():
            for weight in weights:
                weight.requires_grad_(True)
