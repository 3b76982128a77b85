"""The memory simulation: against sums that are known, and against what one GPU has measured."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses.regression import MSE
from diffgan.memory import eight_bit
from diffgan.memory.budget import AVERAGE, DDP, FSDP2, SHARED, WORKSPACE, TrainingSetup, gathered_bytes, plan_memory
from diffgan.memory.drawing import Drawing
from diffgan.memory.gpu_autocast import autocast, gpu_lists
from diffgan.memory.networks import make_fake, skeleton_teacher
from diffgan.memory.simulation import BACKWARD, DISCRIMINATOR, GAN_GRADIENT, GENERATOR, R1
from diffgan.memory.tracker import GRADIENTS, MemoryTracker, module_bytes, storage_bytes
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.nets.lora import LoRA, trainable, with_adapters
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, saved

FLOAT32 = 4


def adamw(parameters):
    return torch.optim.AdamW(parameters, fused=True)


def distillation(teacher, optimizer=adamw, **changes):
    adversarial = AdversarialTraining(MultiScaleDiscriminator, optimizer, r1=changes.pop("r1", "exact"))
    settings = {"adversarial": adversarial} | changes
    return Diffusion2GAN(str(teacher), MSE(), optimizer, 1000, **settings)


@functools.lru_cache
def budget(teacher, pairs=8, setup=None, **changes):
    """Of a distillation in float32; simulated once for all tests."""
    setup = (setup or TrainingSetup(pairs=pairs, mixed=False))._replace(pairs=pairs)
    return plan_memory(distillation(teacher, **changes), skeleton_teacher(str(teacher)), setup)


# ---- the tracker ----


def test_the_peak_of_a_small_network_is_the_sum_of_its_tensors():
    """relu(x W) V: the most is alive when the gradient passes the ReLU: its output, and both gradients."""
    rows, inputs, hidden = 1000, 3, 50
    with FakeTensorMode():
        network = nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 1, bias=False))
        x, tracker = torch.empty(rows, inputs), MemoryTracker()
        tracker.ignore([*network.parameters(), x])
        tracker.follow_gradients(network.parameters())
        with tracker, tracker.measure("pass"):
            network(x).sum().backward()
    last = FLOAT32 * hidden  # the gradient of V
    ones = 2 * FLOAT32  # the sum and its gradient
    assert tracker.peak == {"pass": 3 * FLOAT32 * rows * hidden + ones, GRADIENTS: last}
    assert tracker.live == {"pass": 0, GRADIENTS: FLOAT32 * (inputs * hidden + hidden)}


def test_tensors_of_the_same_storage_are_counted_once():
    with FakeTensorMode():
        tracker = MemoryTracker()
        with tracker, tracker.measure("pass"):
            kept = torch.empty(100)
            views = [kept.view(10, 10), kept[3:], kept.add_(1)]
            assert tracker.live == {"pass": 400} and storage_bytes(views) == 400
            del views, kept
    assert tracker.live == {"pass": 0} and tracker.peak == {"pass": 400}


@pytest.mark.slow
def test_checkpointing_and_a_split_batch_take_less(tiny_pipeline):
    whole = budget(tiny_pipeline)
    assert budget(tiny_pipeline, gradient_checkpointing=True).peak < whole.peak
    assert budget(tiny_pipeline, accumulate=2).peak < whole.peak
    assert budget(tiny_pipeline, pairs=16).peak > whole.peak


# ---- autocast ----


def test_normalisation_is_in_float32_as_on_a_gpu_and_only_inside():
    norm, x = nn.GroupNorm(2, 4), torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)
    with autocast(True):
        before = norm(x).dtype
        with gpu_lists():
            assert norm(x).dtype == torch.float32
            assert nn.functional.interpolate(x, scale_factor=2.0).dtype == torch.float32
            assert nn.functional.conv2d(norm(x), x[:, :, :1, :1].float()).dtype == torch.bfloat16
        assert norm(x).dtype == before == torch.bfloat16


# ---- parts ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_without_values_has_the_shapes_of_the_real_one(family, tmp_path):
    folder = saved(FAMILIES[family], tmp_path / family)
    shapes = {name: weight.shape for name, weight in load_teacher(str(folder)).named_parameters()}
    skeleton = skeleton_teacher(str(folder))
    assert {name: weight.shape for name, weight in skeleton.named_parameters()} == shapes
    assert {weight.device.type for weight in skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "name, network, text", [("sd15", 859_520_964, [123_060_480]), ("sdxl", 2_567_463_684, [123_060_480, 694_659_840])]
)
def test_stable_diffusion_is_built_from_its_small_files(name, network, text):
    teacher = skeleton_teacher(f"tests/data/pipelines/{name}")
    assert sum(weight.numel() for weight in teacher.denoiser.parameters()) == network
    assert [sum(weight.numel() for weight in encoder.parameters()) for encoder in teacher.text_encoders] == text


@pytest.mark.parametrize(
    "name, network, text",
    [  # as the models' pages have them: 0.6, 2.5 (0.23 of them positions, no weights) and 12 billion
        ("pixart", 610_856_096, [4_762_310_656]),
        ("sd35", 2_243_171_520, [123_650_304, 694_659_840, 4_762_310_656]),
        ("flux", 11_901_408_320, [123_060_480, 4_762_310_656]),
    ],
)
def test_transformers_are_built_from_their_small_files(name, network, text):
    teacher = skeleton_teacher(f"tests/data/pipelines/{name}")
    assert sum(weight.numel() for weight in teacher.denoiser.parameters()) == network
    assert [sum(weight.numel() for weight in encoder.parameters()) for encoder in teacher.text_encoders] == text


def test_on_a_device_the_weights_are_random(tiny_pipeline):
    skeleton = skeleton_teacher(str(tiny_pipeline), "cpu")
    assert {weight.device.type for weight in skeleton.parameters()} == {"cpu"}
    conditioning = Conditioning(torch.randn(2, 16, 16))
    latent = skeleton.solve(torch.randn(2, *skeleton.latent_shape), conditioning, steps=1, guidance=1.0)
    assert latent.isfinite().all() and latent.std() > 0


def test_parts_are_those_of_the_real_networks(tiny_pipeline):
    planned = budget(tiny_pipeline)
    module = distillation(tiny_pipeline)
    module.teacher = load_teacher(str(tiny_pipeline))
    networks = module.build_networks()
    weights = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    tensors = sum(len(list(network.parameters())) for network in networks.values())
    assert planned.weights == weights
    assert planned.parts["optimizer states"] == 2 * FLOAT32 * sum(weights.values()) + FLOAT32 * tensors
    assert planned.parts["weights"] == sum(map(module_bytes, networks.values()))
    assert planned.parts[AVERAGE] == module_bytes(networks["g"])
    assert planned.parts["text encoders"] == FLOAT32 * sum(w.numel() for w in module.teacher.text_encoder.parameters())
    by_name = {each.name: each for each in planned.passes}
    assert by_name["generator, optimizer"].peak[GRADIENTS] == FLOAT32 * weights["g"]
    assert by_name[R1].peak[GRADIENTS] == FLOAT32 * weights["d"]
    assert by_name[GAN_GRADIENT].peak.get(GRADIENTS, 0) == 0
    assert by_name[DISCRIMINATOR].peak[GENERATOR] == by_name[R1].peak[GENERATOR] > 0, "G's graph is kept meanwhile"


def test_with_micro_batches_no_graph_of_the_generator_is_kept(tiny_pipeline):
    latents = 2 * 4 * FLOAT32 * 4 * 8 * 8  # two micro-batches of 4
    by_name = {each.name: each for each in budget(tiny_pipeline, accumulate=2).passes}
    assert by_name[DISCRIMINATOR].peak[GENERATOR] == latents
    assert by_name[BACKWARD].peak[GRADIENTS] > 0


def test_settings_that_save_memory(tiny_pipeline):
    plain = budget(tiny_pipeline)
    setup = TrainingSetup(8, mixed=False, embeddings=True, ema_on_cpu=True, asynchronous=True)
    small = budget(tiny_pipeline, setup=setup, optimizer=eight_bit.AdamW8bit, r1="finite_difference")
    assert small.parts[AVERAGE] == small.parts["text encoders"] == 0
    assert small.host[AVERAGE] == plain.parts[AVERAGE] and small.host["checkpoint"] == small.checkpoint
    assert plain.host["checkpoint"] == 0
    assert plain.checkpoint == plain.fixed - plain.parts["text encoders"]
    penalties = [next(each for each in planned.passes if each.name == R1) for planned in (plain, small)]
    own = [sum(each.peak.get(label, 0) for label in (R1, WORKSPACE)) for each in penalties]
    assert own[1] < own[0] / 2


def test_drawing_is_the_most_of_any_callback(tiny_pipeline):
    """Lent networks, and decoding or a call of the network, with guidance of twice as many rows."""
    student, grid = Drawing("COCOFID", 16, 16, by_teacher=False), Drawing("SampleGrid", 16, 16, by_teacher=True)
    health, large = (
        Drawing("TrainingHealth", 32, 0, by_teacher=True),
        Drawing("TrainingHealth", 999, 0, by_teacher=True),
    )
    setup = TrainingSetup(8, mixed=False, drawings=(student, grid, health, large))
    planned, teacher = budget(tiny_pipeline, setup=setup), load_teacher(str(tiny_pipeline))
    drawn = planned.drawings
    assert drawn[grid] - drawn[student] == module_bytes(teacher.denoiser)
    assert drawn[health] < drawn[grid] < drawn[large] == planned.drawing
    assert planned.required == planned.fixed + planned.drawing + planned.allowance
    lending = budget(tiny_pipeline, setup=setup._replace(embeddings=True, ema_on_cpu=True)).drawings
    text = planned.parts["text encoders"]
    assert lending[student] == drawn[student] + text + planned.parts[AVERAGE]
    assert budget(tiny_pipeline).drawing == 0


def test_an_8_bit_optimizer_has_two_bytes_and_a_scale_per_block():
    large, small = nn.Parameter(torch.zeros(256, 257)), nn.Parameter(torch.zeros(100))
    optimizer = eight_bit.AdamW8bit([large, small], lr=1e-3)
    for weight in (large, small):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert storage_bytes(states) == 2 * (256 * 257 + 4 * 257) + 2 * 4 * 100


def test_an_optimizer_that_reads_values_is_refused(tiny_pipeline):
    with pytest.raises(UserError, match="Adafactor"):
        budget(tiny_pipeline, optimizer=torch.optim.Adafactor)


# ---- several processes ----


def test_ddp_keeps_the_gradients_of_both_networks(tiny_pipeline):
    alone, shared = budget(tiny_pipeline), budget(tiny_pipeline, setup=TrainingSetup(8, 2, DDP, mixed=False))
    assert shared.parts["gradient buckets"] == alone.parts["weights"]
    assert all(GRADIENTS not in each.peak or each.peak[GRADIENTS] == 0 for each in shared.passes)


def test_fsdp_divides_what_it_shards(tiny_pipeline):
    alone, sharded = budget(tiny_pipeline), budget(tiny_pipeline, setup=TrainingSetup(8, 4, FSDP2, mixed=False))
    for part in ("weights", "optimizer states", AVERAGE):
        assert sharded.parts[part] == alone.parts[part] / 4
    assert sharded.checkpoint == alone.checkpoint == sharded.host["checkpoint"]
    copied = budget(tiny_pipeline, setup=TrainingSetup(8, 4, FSDP2, mixed=False, asynchronous=True))
    assert copied.host["checkpoint"] == 2 * copied.checkpoint, "what was gathered is copied"


def test_networks_are_built_on_the_host_before_they_are_sharded(tiny_pipeline):
    planned = budget(tiny_pipeline, setup=TrainingSetup(8, 4, FSDP2, mixed=False))
    module = distillation(tiny_pipeline)
    module.configure_model()
    teacher, networks = module_bytes(module.teacher), sum(map(module_bytes, module.networks.values()))
    assert planned.building == teacher + networks + module_bytes(module.generator_ema)


def test_what_fsdp_gathers():
    blocks = [nn.Linear(10, width, bias=False) for width in (1, 5, 2)]
    network = nn.ModuleDict({str(i): block for i, block in enumerate(blocks)} | {"rest": nn.Linear(1, 1, bias=False)})
    unit = 10 * FLOAT32
    assert gathered_bytes(network, blocks, backward=False, keep_unsharded=False) == FLOAT32 + (1 + 2 * 5) * unit
    assert gathered_bytes(network, blocks, backward=True, keep_unsharded=False) == FLOAT32 + (3 * 5 + 2 * 1) * unit
    assert gathered_bytes(network, blocks, backward=True, keep_unsharded=True) == FLOAT32 + (8 + 2 * 5) * unit


def test_fake_weights_keep_their_layout():
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    real = copy.deepcopy(network)
    with FakeTensorMode():
        make_fake(network)
    assert network.weight.stride() == real.weight.stride() and network.weight.requires_grad


def test_adapters_share_the_weights_of_the_teacher(tiny_pipeline):
    """One copy of them; gradients, states, average and checkpoints are those of the adapters and added layers."""
    full = budget(tiny_pipeline)
    module = distillation(tiny_pipeline)
    module.lora = LoRA(rank=2)
    module.adversarial.discriminator = lambda network: MultiScaleDiscriminator(network, lora=LoRA(rank=2))
    planned = plan_memory(module, skeleton_teacher(str(tiny_pipeline)), TrainingSetup(pairs=4, mixed=False))
    teacher = load_teacher(str(tiny_pipeline)).denoiser
    generator = with_adapters(teacher, LoRA(rank=2))
    own = FLOAT32 * sum(weight.numel() for weight in trainable(generator))
    assert planned.parts[SHARED] == module_bytes(teacher) and SHARED not in full.parts
    buffers = 2 * FLOAT32  # alpha and sigma
    assert planned.parts[AVERAGE] == own + buffers and planned.weights["g"] == own / FLOAT32
    assert planned.parts["optimizer states"] < full.parts["optimizer states"] / 2
    assert planned.checkpoint < full.checkpoint / 2 and planned.building < full.building / 2
    by_name = {each.name: each for each in planned.passes}
    assert by_name["generator, optimizer"].peak[GRADIENTS] == own
