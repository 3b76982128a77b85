"""The parts in order of value; shares are their seconds on an H100."""

from tests.gpu import chain, pairs, penalties, perceptual, stages, steps, syncs
from tests.gpu.parts import Part

PARTS = (
    Part(1, "the demo's chain in small", 70, chain.cells, chained=True),
    Part(2, "training steps of SD1.5", 90, steps.sd15_cells),
    Part(3, "R1, and the rounding of bfloat16", 40, penalties.cells),
    Part(4, "pairs, as if of 50 steps with guidance", 60, pairs.cells),
    Part(5, "E-LatentLPIPS, forward and backward", 20, perceptual.cells),
    Part(6, "training steps of SDXL", 50, steps.sdxl_cells),
    Part(7, "synchronisations and kernels of a step of the miniature", 15, syncs.cells),
    Part(8, "stages of the miniature's own networks", 15, stages.cells, chained=True),
)
