"""A family of another kind needs no edit elsewhere: a flow-matching transformer with its own network and schedule.

The classes here are what the family's file would have; network and schedulers are those of diffusers.
"""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.nets.generator import OneStepGenerator
from diffgan.teachers import denoiser, prediction, schedule, solvers
from diffgan.teachers.base import Teacher
from diffgan.teachers.digest import weights_digest
from diffgan.training import ema
from tests.pipelines import autoencoder, text_config, tokenizer

NO_OTHERS = dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))


class TransformerAdapter(denoiser.DenoiserAdapter):
    network_class = SD3Transformer2DModel
    component = "transformer"

    def check(self, network):
        pass

    def latent_shape(self, config):
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def check_size(self, config, height, width):
        denoiser.check_multiple(config["patch_size"], height, width)

    def empty_conditioning(self, config, tokens):
        text = torch.empty(1, tokens, config["joint_attention_dim"])
        return Conditioning(text, pooled=torch.empty(1, config["pooled_projection_dim"]))

    def predict(self, network, latent, t, conditioning):
        t = torch.as_tensor(t, device=latent.device).expand(len(latent))
        arguments = {"encoder_hidden_states": conditioning.text, "pooled_projections": conditioning.pooled}
        return network(latent, timestep=t, **arguments, return_dict=False)[0]

    def blocks(self, network):
        return list(network.transformer_blocks)


class FlowSchedule(schedule.NoiseSchedule):
    """z_t = (1 - sigma) x0 + sigma eps, sigma = t / 1000."""

    scheduler_class = FlowMatchEulerDiscreteScheduler
    prediction_type = "flow_prediction"

    @classmethod
    def from_pipeline(cls, scheduler):
        return cls(scheduler)

    @classmethod
    def load(cls, path):
        return cls(FlowMatchEulerDiscreteScheduler.from_pretrained(path, subfolder="scheduler"))

    @property
    def num_timesteps(self):
        return self.scheduler.config.num_train_timesteps

    @property
    def last_timestep(self):
        return self.num_timesteps

    def sigma(self, t):
        return torch.tensor(t / self.num_timesteps)

    def alpha(self, t):
        return 1 - self.sigma(t)

    def solver_names(self):
        return ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]

    def solver_parameters(self):
        return {"num_train_timesteps", "shift"}

    def solver_config(self):
        return schedule.public_config(self.scheduler)

    def mismatch(self, solver):
        return None if solver.config.shift == self.scheduler.config.shift else "has another shift"


def x0_from_velocity(velocity, z, alpha, sigma):
    """x0 = z - sigma v, for v = eps - x0."""
    return z - sigma * velocity


class FlowTeacher(Teacher):
    """One text encoder, with its last hidden states and its pooled embedding."""

    pipeline_class = StableDiffusion3Pipeline
    components = ("vae", "text_encoder", "tokenizer", "transformer", "scheduler")
    network_class = SD3Transformer2DModel
    schedule_class = FlowSchedule

    def __init__(self, vae, text_encoder, tokenizer, transformer, scheduler):
        super().__init__(vae, transformer, scheduler)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.requires_grad_(False).eval()

    @property
    def tokenizers(self):
        return [self.tokenizer]

    @property
    def text_encoders(self):
        return [self.text_encoder]

    def _encode(self, prompts):
        encoded = self.text_encoder(self._tokens(self.tokenizer, prompts))
        return Conditioning(encoded.last_hidden_state, pooled=encoded.text_embeds)

    def unconditional(self, count):
        return self.encode([""] * count)

    def as_pipeline(self):
        components = {name: getattr(self, name) for name in self.components}
        return StableDiffusion3Pipeline(**components, **NO_OTHERS)


@pytest.fixture(autouse=True)
def flow_family(monkeypatch):
    monkeypatch.setitem(denoiser.ADAPTERS, SD3Transformer2DModel, TransformerAdapter())
    monkeypatch.setitem(schedule.SCHEDULES, FlowMatchEulerDiscreteScheduler, FlowSchedule)
    monkeypatch.setitem(prediction.EQUATIONS, "flow_prediction", x0_from_velocity)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
    )
    return network.eval()


@pytest.fixture
def teacher(transformer):
    words = tokenizer()
    encoder = CLIPTextModelWithProjection(text_config(words, projection_dim=12))
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=words,
        **NO_OTHERS,
    )
    return FlowTeacher.from_pipeline(pipeline)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), Conditioning(torch.randn(2, 5, 16), pooled=torch.randn(2, 12))


def test_one_step_equals_stock_flow_matching(transformer, inputs):
    z, c = inputs
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0])
    generator = OneStepGenerator(transformer, scheduler)
    with torch.no_grad():
        (t,) = scheduler.timesteps
        velocity = transformer(z, encoder_hidden_states=c.text, pooled_projections=c.pooled, timestep=t.expand(2))[0]
        torch.testing.assert_close(generator(z, c), scheduler.step(velocity, t, z).prev_sample, atol=1e-5, rtol=1e-5)
    assert all(name.startswith("transformer.") for name in generator.state_dict())
    assert generator.blocks() == list(transformer.transformer_blocks)


def test_average_of_the_student_is_a_student(transformer, inputs):
    generator = OneStepGenerator(transformer, FlowMatchEulerDiscreteScheduler())
    average = ema.frozen_copy(generator)
    with torch.no_grad():
        next(generator.parameters()).add_(1)
        changed, unchanged = generator(*inputs), average(*inputs)
    assert average.denoiser is not generator.denoiser and not torch.equal(changed, unchanged)


def test_solvers_of_flow_matching_are_checked_as_others_are():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver = solvers.solver("FlowMatchEulerDiscreteScheduler", scheduler)
    solver.set_timesteps(4)
    z = torch.randn(1, 4, 8, 8)
    latent = solvers.initial_latent(solver, z)
    torch.testing.assert_close(latent, z)
    for t in solver.timesteps:  # of data that are all x0, the velocity is (z - x0) / sigma: the ODE ends at x0
        sigma = t / 1000
        velocity = (solvers.model_input(solver, latent, t) - 0.5) / sigma
        latent = solver.step(velocity, t, latent, return_dict=False)[0]
    torch.testing.assert_close(latent, torch.full_like(latent, 0.5), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="FlowMatchLCMScheduler: adds fresh noise"):
        solvers.solver("FlowMatchLCMScheduler", scheduler)
    with pytest.raises(UserError, match=r"DDIMScheduler: is not a scheduler .* choose one of FlowMatchEuler"):
        solvers.solver("DDIMScheduler", scheduler)


def test_teacher_solves_as_the_stock_scheduler_does(teacher):
    z, c = torch.randn(2, *teacher.latent_shape), teacher.encode(["digit 7", "a bold capital A"])
    ours = teacher.solve(z, c, 4, 1.0, solver="FlowMatchEulerDiscreteScheduler")
    scheduler, latent = FlowMatchEulerDiscreteScheduler(shift=3.0), z
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            arguments = {"encoder_hidden_states": c.text, "pooled_projections": c.pooled}
            velocity = teacher.transformer(latent, timestep=t.expand(2), **arguments).sample
            latent = scheduler.step(velocity, t, latent).prev_sample
    torch.testing.assert_close(ours, latent, atol=1e-5, rtol=1e-5)
    assert teacher.network_calls(4, "FlowMatchEulerDiscreteScheduler") == 4
    guided = teacher.solve(z, c, 4, 3.0, solver="FlowMatchEulerDiscreteScheduler")
    assert teacher.decode(guided).shape == (2, 3, 32, 32) and (guided - ours).abs().max() > 1e-4


def test_teacher_is_written_and_identified_as_others_are(teacher, tmp_path):
    teacher.as_pipeline().save_pretrained(tmp_path)
    again = FlowTeacher.from_pipeline(StableDiffusion3Pipeline.from_pretrained(tmp_path, **NO_OTHERS))
    assert weights_digest(again) == weights_digest(teacher)
    next(again.denoiser.parameters()).add_(1)
    assert weights_digest(again) != weights_digest(teacher)
