"""Part 4: how many pairs of 50 steps with guidance a second, beside the bare loop and diffusers' `pipe()`."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from diffgan.pairs.generation import PairGeneration, PromptBatch
from diffgan.teachers.base import Teacher
from tests.gpu.networks import SD15, SDXL, random_teacher
from tests.gpu.parts import Cell, Setting
from tests.gpu.timing import mark, peak_gb, reset_peak, seconds_between, synchronize

GUIDANCE, STEPS = 8.0, 50
FEW, MORE = 2, 5  # steps of the two runs from which the seconds of 50 steps are extrapolated
PROMPTS = ["a bold capital A in red on cream", "digit 7"]
COMPILE_SECONDS = 60.0

Solve = Callable[[int], Any]  # number of steps -> whatever


def cells(setting: Setting) -> list[Cell]:
    """Stable Diffusion 1.5 in every way, then XL; the compiled network is put off."""
    sd15, sdxl = setting.choose((64, 16), (4, 2))
    bf16, fp16 = torch.bfloat16, torch.float16
    return [
        Cell("sd15, generation, bf16", partial(_measure, setting, SD15, sd15, _generation, bf16)),
        Cell("sd15, bare loop, bf16", partial(_measure, setting, SD15, sd15, _bare_loop, bf16)),
        Cell("sd15, pipe(), bf16 weights", partial(_measure, setting, SD15, sd15, _pipe, bf16)),
        Cell("sd15, generation, fp16", partial(_fp16, setting, sd15)),
        Cell("sdxl, generation, bf16", partial(_measure, setting, SDXL, sdxl, _generation, bf16)),
        Cell("sd15, generation, bf16, compiled", partial(_compiled, setting, sd15, bf16), COMPILE_SECONDS, last=True),
        Cell("sd15, generation, fp16, compiled", partial(_compiled, setting, sd15, fp16), COMPILE_SECONDS, last=True),
    ]


def _fp16(setting: Setting, batch: int) -> dict[str, float]:
    setting.require_cuda()
    return _measure(setting, SD15, batch, _generation, torch.float16)


def _compiled(setting: Setting, batch: int, dtype: torch.dtype) -> dict[str, float]:
    setting.require_cuda()
    return _measure(setting, SD15, batch, partial(_generation, compiled=True), dtype)


def _measure(setting: Setting, name: str, batch: int, way: Callable[..., Solve], dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of a batch with few and with more steps, and what follows for 50 steps."""
    teacher = _only(setting, name)
    solve = way(setting, teacher, batch, dtype)
    before = reset_peak(setting.device)
    solve(FEW)  # warms up
    few, more = (_seconds(setting, partial(solve, steps)) for steps in (FEW, MORE))
    step = (more - few) / (MORE - FEW)
    total = few + (STEPS - FEW) * step
    return {
        "batch": batch,
        "pairs/s": batch / total,
        "ms/step": 1000 * step,
        "ms beside the steps": 1000 * (few - FEW * step),
        "GB above weights": peak_gb(setting.device, before),
    }


def _only(setting: Setting, name: str) -> Teacher:
    """A teacher; another one is dropped before."""
    if f"{name} teacher" not in setting.shared:
        setting.clear()
    return setting.once(f"{name} teacher", lambda: random_teacher(setting, name))


def _seconds(setting: Setting, run: Callable[[], Any]) -> float:
    synchronize(setting.device)
    start = mark(setting.device)
    run()
    return seconds_between(start, mark(setting.device))


def _prompts(batch: int) -> list[str]:
    return [PROMPTS[i % len(PROMPTS)] for i in range(batch)]


def _generation(setting: Setting, teacher: Teacher, batch: int, dtype: torch.dtype, compiled: bool = False) -> Solve:
    """`PairGeneration.predict_step` under autocast, as `diffgan predict` calls it: text, noise and solver."""
    module = PairGeneration("random", FEW, GUIDANCE)
    module.teacher = teacher
    if compiled:
        teacher.denoiser.compile()
    module.to(setting.device)
    prompts = PromptBatch(torch.arange(batch), _prompts(batch))

    def solve(steps: int) -> Any:
        module.steps = steps
        with torch.no_grad(), torch.autocast(setting.device.type, dtype=dtype):
            return module.predict_step(prompts, 0)

    return solve


def _bare_loop(setting: Setting, teacher: Teacher, batch: int, dtype: torch.dtype) -> Solve:
    """Network and scheduler alone, as tests/bench/overhead.py does it."""
    noise = torch.randn(batch, *teacher.latent_shape, device=setting.device)
    text = teacher.encode(_prompts(batch)).text.repeat(2, 1, 1)

    @torch.no_grad()
    def solve(steps: int) -> Any:
        latent, scheduler = noise, DDIMScheduler.from_config(teacher.scheduler.config)
        scheduler.set_timesteps(steps)
        with torch.autocast(setting.device.type, dtype=dtype):
            for t in scheduler.timesteps:
                both = teacher.denoiser(torch.cat([latent, latent]), t, encoder_hidden_states=text).sample
                unconditional, conditional = both.float().chunk(2)
                guided = unconditional + GUIDANCE * (conditional - unconditional)
                latent = scheduler.step(guided, t, latent).prev_sample
        return latent

    return solve


def _pipe(setting: Setting, teacher: Teacher, batch: int, dtype: torch.dtype) -> Solve:
    """Stock diffusers with all weights in `dtype`, as its users load it."""
    pipe: DiffusionPipeline = copy.deepcopy(teacher).to(dtype).as_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(teacher.scheduler.config)
    options = {"guidance_scale": GUIDANCE, "output_type": "latent"}

    def solve(steps: int) -> Any:
        return pipe(_prompts(batch), num_inference_steps=steps, **options).images

    return solve
