"""Row files and the pipelines that they call: compared with the stock pipeline of diffusers, called as its users do."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffgan.errors import UserError
from diffgan.evaluation.pipeline_sampler import PipelineSampler
from diffgan.evaluation.rows import Lora, Row, read_row
from diffgan.evaluation.samplers import TeacherSampler
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from diffgan.teachers.schedule import SCHEDULER_SETTINGS
from tests.pipelines import WITHOUT_CHECKER, saved, sd1, sdxl, unet

PROMPTS, SEEDS = ["digit 7", "a bold capital A in red on cream", "digit 7"], [3_000_000_000, 5, 6]
ROWS = sorted(Path("configs/tables/rows").rglob("*.yaml"))
TRAILING = {"timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return {"sd15": saved(sd1, folder / "sd15"), "sdxl": saved(sdxl, folder / "sdxl")}


def row(pipeline, guidance=0, **values) -> Row:
    return Row("row", str(pipeline), guidance, **values)


def images(sampler, rows=(0, 1, 2)):
    """The images of some prompts, in [0, 1], in one batch."""
    prompts, seeds = [PROMPTS[i] for i in rows], [SEEDS[i] for i in rows]
    return (sampler.images(draw_noise(seeds, sampler.latent_shape), prompts, seeds) / 2 + 0.5).clamp(0, 1)


def stock(folder, given, pipeline=None):
    """The images of the same prompts and seeds by the pipeline alone, one call each, which draws its own noise."""
    pipeline = DiffusionPipeline.from_pretrained(folder, **WITHOUT_CHECKER) if pipeline is None else pipeline
    changes = {key: value for key, value in given.scheduler.items() if key != "class"}
    scheduler_class = getattr(diffusers, given.scheduler.get("class", type(pipeline.scheduler).__name__))
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    steps = {"timesteps": given.timesteps} if given.timesteps else {"num_inference_steps": given.steps}
    call = {"guidance_scale": given.guidance, "output_type": "pt", **steps, **given.call}
    made = [
        pipeline(prompt, generator=torch.Generator().manual_seed(seed), **call).images
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    return torch.cat(made)


KINDS = {
    "DDIM trailing": ("sd15", {"scheduler": {"class": "DDIMScheduler", **TRAILING}, "steps": 3, "guidance": 3}, 3),
    "own scheduler": ("sdxl", {"steps": 2, "guidance": 7.5}, 2),
    "Euler trailing": ("sdxl", {"scheduler": {"class": "EulerDiscreteScheduler", **TRAILING}, "steps": 2}, 2),
    "Euler, sample": (
        "sdxl",
        {"scheduler": {"class": "EulerDiscreteScheduler", "prediction_type": "sample", **TRAILING}, "steps": 1},
        1,
    ),
    "Euler ancestral": ("sdxl", {"scheduler": {"class": "EulerAncestralDiscreteScheduler", **TRAILING}, "steps": 2}, 2),
    "LCM": ("sd15", {"scheduler": {"class": "LCMScheduler"}, "steps": 4, "guidance": 1}, 4),
    "timesteps": ("sdxl", {"scheduler": {"class": "LCMScheduler"}, "timesteps": [999, 749, 499, 249]}, 4),
    "one timestep": ("sdxl", {"scheduler": {"class": "LCMScheduler"}, "timesteps": [399]}, 1),
    "TCD": ("sd15", {"scheduler": {"class": "TCDScheduler"}, "steps": 3, "call": {"eta": 1.0}}, 3),
    "Heun calls twice a step": ("sd15", {"scheduler": {"class": "HeunDiscreteScheduler"}, "steps": 3}, 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_stock_pipeline(kind, folders):
    family, values, calls = KINDS[kind]
    given = row(folders[family], **values)
    sampler = PipelineSampler(given)
    made = images(sampler)
    torch.testing.assert_close(made, stock(folders[family], given), atol=2e-5, rtol=0)
    assert sampler.network_calls == calls
    alone = torch.cat([images(sampler, [i]) for i in (0, 1, 2)])
    torch.testing.assert_close(made, alone, atol=2e-5, rtol=0)  # whatever is beside them in the batch
    assert not torch.allclose(made[0], made[2], atol=1e-3)  # one prompt, two seeds


def test_a_row_of_a_teacher_is_the_teacher(folders):
    """The settings of the teachers' rows, against our own solver."""
    for family, folder in folders.items():
        settings = read_row(Path(f"configs/tables/rows/{family}/teacher.yaml")).scheduler
        sampler = PipelineSampler(row(folder, scheduler=settings, steps=4, guidance=3))
        torch.testing.assert_close(images(sampler), images(TeacherSampler(str(folder), 4, 3.0)), atol=2e-5, rtol=0)


def test_guidance_as_an_input_of_the_network(folders, tmp_path):
    """LCM: one row for each image, not two; its pipeline class or its UNet with a configuration of its own."""
    base = sd1()
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer")}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = unet(time_cond_proj_dim=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                       up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    lcm = LatentConsistencyModelPipeline(**parts, unet=network, scheduler=LCMScheduler(), **WITHOUT_CHECKER)
    lcm.save_pretrained(tmp_path / "lcm")
    given = row(tmp_path / "lcm", steps=4, guidance=8)
    sampler = PipelineSampler(given)
    torch.testing.assert_close(images(sampler), stock(tmp_path / "lcm", given), atol=2e-5, rtol=0)
    assert sampler.network_calls == 4
    replaced = PipelineSampler(row(folders["sd15"], scheduler={"class": "LCMScheduler"}, steps=4, guidance=8,
                                   unet=str(tmp_path / "lcm" / "unet")))  # fmt: skip
    weaker = PipelineSampler(row(folders["sd15"], scheduler={"class": "LCMScheduler"}, steps=4, guidance=2,
                                 unet=str(tmp_path / "lcm" / "unet")))  # fmt: skip
    assert not torch.allclose(images(replaced), images(weaker), atol=1e-4)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_student_of_another_size_is_called_in_it(family, folders, tmp_path):
    """As `diffgan export` notes it; SDXL is also told the size."""
    folder = tmp_path / "student"
    shutil.copytree(folders[family], folder)
    (folder / "diffgan.json").write_text(json.dumps({"size": [32, 64]}))
    sampler = PipelineSampler(row(folder, steps=1, scheduler={"class": "DDIMScheduler", **SCHEDULER_SETTINGS}))
    teacher = load_teacher(str(folder))
    assert sampler.latent_shape == teacher.latent_shape == (4, 8, 16)
    noise, prompts = draw_noise([5, 6], (4, 8, 16)), ["digit 7", ""]
    ours = teacher.solve(noise, teacher.encode(prompts), 1, 1.0)
    torch.testing.assert_close(sampler.latents(noise, prompts, [5, 6]), ours, atol=1e-4, rtol=1e-4)


def test_a_unet_file_replaces_the_weights(folders, tmp_path):
    other = saved(sdxl, tmp_path / "other", seed=1) / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: weight.half() for name, weight in load_file(other).items()}
    save_file(half, tmp_path / "unet.safetensors")
    given = row(folders["sdxl"], scheduler={"class": "EulerDiscreteScheduler", **TRAILING}, steps=2,
                unet=str(tmp_path / "unet.safetensors"))  # fmt: skip
    pipeline = DiffusionPipeline.from_pretrained(folders["sdxl"])
    pipeline.unet.load_state_dict({name: weight.float() for name, weight in half.items()})
    sampler = PipelineSampler(given)
    torch.testing.assert_close(images(sampler), stock(None, given, pipeline), atol=2e-5, rtol=0)
    assert len(sampler.pipeline["unet"]["digest"]) == 32


# ---- LoRA ----


def lora_of(folder: Path, file: Path, rank: int = 2, alpha: float = 1.0) -> dict[str, torch.Tensor]:
    """Write a random LoRA of every attention query of a pipeline's UNet; returns what it adds to the weights."""
    network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    random, weights, added = torch.Generator().manual_seed(0), {}, {}
    for name, module in network.named_modules():
        if name.endswith("to_q"):
            down = torch.randn(rank, module.in_features, generator=random)
            up = torch.randn(module.out_features, rank, generator=random)
            key = f"lora_unet_{name.replace('.', '_')}"  # as kohya's trainer writes them; so does Hyper-SD
            weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            weights[f"{key}.alpha"] = torch.tensor(alpha)
            added[f"{name}.weight"] = alpha / rank * up @ down
    save_file(weights, file)
    return added


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="LoRA files need the extra `lora`")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_lora_is_added_to_the_weights(family, folders, tmp_path, peft):
    added = lora_of(folders[family], tmp_path / "lora.safetensors")
    settings = {"scheduler": {"class": "LCMScheduler"}, "steps": 2, "guidance": 1}
    plain = row(folders[family], **settings)
    given = row(folders[family], **settings, lora=Lora(str(tmp_path / "lora.safetensors"), 0.5))
    pipeline = DiffusionPipeline.from_pretrained(folders[family], **WITHOUT_CHECKER)
    with torch.no_grad():
        for name, change in added.items():
            pipeline.unet.get_parameter(name).add_(0.5 * change)
    sampler = PipelineSampler(given)
    made = images(sampler)
    torch.testing.assert_close(made, stock(None, given, pipeline), atol=2e-5, rtol=0)
    assert not torch.allclose(made, images(PipelineSampler(plain)), atol=1e-3)
    assert sampler.network_calls == 2 and len(sampler.pipeline["lora"]["digest"]) == 32


def test_a_lora_of_another_architecture_is_refused(folders, tmp_path, peft):
    lora_of(folders["sdxl"], tmp_path / "lora.safetensors")
    given = row(folders["sd15"], steps=1, lora=Lora(str(tmp_path / "lora.safetensors")))
    with pytest.raises(UserError, match="does not fit the pipeline"):
        PipelineSampler(given)


# ---- the rows of this project ----


@pytest.mark.parametrize("file", ROWS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_row_runs_on_a_tiny_pipeline_of_its_family(file, folders, tiny_pipeline, tmp_path):
    given = read_row(file)
    folder = folders.get(file.parent.name, tiny_pipeline)
    changes = {"pipeline": str(folder)}
    if given.unet is not None and given.unet.endswith(".safetensors"):
        changes["unet"] = str(folder / "unet" / "diffusion_pytorch_model.safetensors")
    elif given.unet is not None:
        changes["unet"] = str(folder / "unet")
    if given.lora is not None:
        pytest.importorskip("peft", reason="LoRA files need the extra `lora`")
        lora_of(folder, tmp_path / "lora.safetensors")
        changes["lora"] = Lora(str(tmp_path / "lora.safetensors"), given.lora.scale)
    sampler = PipelineSampler(Row(**{**vars(given), **changes}))
    assert images(sampler).isfinite().all()
    assert sampler.network_calls == (given.steps or len(given.timesteps))


def test_the_rows_of_teachers_agree_with_the_recipes():
    for scale in ("sd15", "sdxl"):
        recipe = yaml.safe_load(Path(f"configs/{scale}/recipe.yaml").read_text())
        teacher = read_row(Path(f"configs/tables/rows/{scale}/teacher.yaml"))
        assert (teacher.pipeline, teacher.steps, teacher.guidance) == tuple(
            recipe[key] for key in ("teacher", "steps", "guidance")
        )


# ---- refusals ----

GIVEN = {"name": "a", "pipeline": "glyphs", "guidance": 0, "steps": 1}
BAD = {
    "unknown key": ({"stepps": 1}, "unknown key stepps; did you mean steps?"),
    "unknown key of the LoRA": ({"lora": {"fil": "a"}}, "unknown key lora.fil; did you mean lora.file?"),
    "steps and timesteps": ({"timesteps": [999]}, "give either steps or timesteps"),
    "neither": ({"steps": None}, "give either steps or timesteps"),
    "steps": ({"steps": 0}, "steps is 0 and must be a whole number of at least 1"),
    "timesteps": (
        {"steps": None, "timesteps": [1, 2]},
        "timesteps is [1, 2] and must be a list of",
    ),
    "guidance": ({"guidance": "7"}, "guidance is '7' and must be a number"),
    "name": ({"name": 3}, "name is 3 and must be text"),
    "pickled UNet": ({"unet": "owner/model/unet.bin"}, "can run code that is in it; convert it to .safetensors"),
    "pickled LoRA": ({"lora": {"file": "lora.ckpt"}}, "lora.file: opening lora.ckpt can run code"),
    "LoRA of no kind": ({"lora": {"file": "owner/model"}}, "lora.file is 'owner/model' and must be a .safetensors"),
    "dtype": ({"dtype": "float8"}, "dtype is 'float8' and must be one of float32, bfloat16, float16"),
    "scheduler": ({"scheduler": "DDIMScheduler"}, "scheduler is 'DDIMScheduler' and must be a mapping"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_refused(kind, tmp_path):
    changes, message = BAD[kind]
    file = tmp_path / "row.yaml"
    file.write_text(yaml.safe_dump(GIVEN | changes))
    with pytest.raises(UserError) as error:
        read_row(file)
    assert str(error.value).startswith(f"row {file}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_rows_are_refused(tmp_path):
    for text in ("- a", "a: [", "name: a"):
        (tmp_path / "row.yaml").write_text(text)
        with pytest.raises(UserError, match=r"row\.yaml: "):
            read_row(tmp_path / "row.yaml")
    with pytest.raises(UserError, match="No such file"):
        read_row(tmp_path / "missing.yaml")


UNUSABLE = {
    "no such pipeline": ({"pipeline": "no/such"}, "pipeline no/such: no such directory"),
    "no such scheduler": ({"scheduler": {"class": "DIMScheduler"}}, "scheduler.class: diffusers has no scheduler DIM"),
    "no scheduler": ({"scheduler": {"class": "AutoencoderKL"}}, "scheduler.class: diffusers has no scheduler Auto"),
    "no such setting": ({"scheduler": {"spacing": "trailing"}}, "scheduler.spacing: is no setting of PNDMScheduler"),
    "setting's value": (
        {"scheduler": {"class": "DDIMScheduler", "timestep_spacing": "trialing"}},
        "scheduler: a DDIMScheduler cannot be used in this way (trialing",
    ),
    "too many steps": (
        {"scheduler": {"class": "LCMScheduler"}, "steps": 51},
        "scheduler: a LCMScheduler cannot be used in this way",
    ),
    "no timesteps": (
        {"scheduler": {"class": "DDIMScheduler"}, "steps": None, "timesteps": [399]},
        "timesteps: a DDIMScheduler takes no list of timesteps; give steps",
    ),
    "no such UNet file": ({"unet": "missing.safetensors"}, "unet: no such file missing.safetensors"),
    "no such LoRA file": ({"lora": Lora("a/b/c.safetensors")}, "lora.file: no such file a/b/c.safetensors"),
    "no argument": ({"call": {"etta": 1}}, "call.etta: is no argument of a StableDiffusionPipeline's call"),
    "protocol's argument": ({"call": {"generator": 1}}, "call.generator: is decided by the row or the protocol"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_rows_that_the_pipeline_cannot_follow_are_refused(kind, folders, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    changes, message = UNUSABLE[kind]
    given = {"pipeline": folders["sd15"], "steps": 1} | changes
    with pytest.raises(UserError) as error:
        PipelineSampler(row(**given))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_unet_are_refused(folders, tmp_path):
    own = load_file(folders["sd15"] / "unet" / "diffusion_pytorch_model.safetensors")
    fewer = dict(list(own.items())[1:])
    wider = {name: torch.zeros(3, *weight.shape) for name, weight in own.items()}
    for weights, message in (
        (fewer, "lacks"),
        (own | {"extra": torch.zeros(1)}, "unknown extra"),
        (wider, "size mism"),
    ):
        save_file(weights, tmp_path / "unet.safetensors")
        with pytest.raises(UserError, match=f"does not fit the UNet of .*{message}"):
            PipelineSampler(row(folders["sd15"], steps=1, unet=str(tmp_path / "unet.safetensors")))
    (tmp_path / "unet.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="does not fit"):
        PipelineSampler(row(folders["sd15"], steps=1, unet=str(tmp_path / "unet.safetensors")))


def test_a_pipeline_that_lacks_a_tensor_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["sd15"], tmp_path / "pipeline")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_in.bias"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"pipeline .*: tensor decoder\.conv_in\.bias is missing"):
        PipelineSampler(row(str(folder), steps=1))
