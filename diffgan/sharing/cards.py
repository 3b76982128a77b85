"""The card of what is shared, Markdown with a YAML head, written from its records."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from diffgan.latent_space import LatentSpace
from diffgan.sharing.content import EXPORT, PAIRS, SAMPLES, STUDENT, WEIGHTS, Content

PAPER = "[Distilling Diffusion Models into Conditional GANs](https://arxiv.org/abs/2405.05967) (Kang et al., ECCV 2024)"
LICENCE = """\
## Licence

`{license}`. Weights and images that were made with a model are subject to the licence of that model too.
"""


def card(content: Content, repository: str, license: str) -> str:
    """The card of a repository.

    Args:
        repository: `owner/name`.
        license: the hub's name of a licence, such as "apache-2.0"; "other" where none of them applies.
    """
    head, body = WRITERS[content.kind](content.record, repository)
    front = yaml.safe_dump({"license": license, **head}, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n# {repository.partition('/')[2]}\n\n{body}\n{LICENCE.format(license=license)}"


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of two columns; rows without a value are omitted."""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "", {})]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _student(record: dict[str, Any], repository: str) -> tuple[dict[str, Any], str]:
    teacher, method, pairs = (record.get(part) or {} for part in ("teacher", "method", "pairs"))
    name = teacher.get("name")
    head = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["diffgan", "one-step"]}
    if name and "/" in name:
        head["base_model"] = name
    rows = {
        "teacher": name,
        "pipeline": record.get("class"),
        "pairs": pairs and f"{pairs['pairs']}, by {pairs['steps']} steps of the teacher, guidance {pairs['guidance']}",
        "method": method.get("name"),
        "regression loss": method.get("regression"),
        "discriminator": method.get("discriminator"),
        "images seen": record.get("images_seen"),
        "stored in": record.get("dtype", "float32"),
        "largest difference of x^ to float32": (record.get("difference_to_float32") or {}).get("largest"),
        "checkpoint": record.get("checkpoint"),
    }
    samples = f"![samples]({SAMPLES})\n\n*Rows as named at the left, the same noise in each column.*\n\n"
    body = (
        f"A generator of one network call, distilled from {_cell(name or 'its teacher')} by the method of {PAPER} "
        f"with diffgan.\n\n{samples if record.get('samples') else ''}"
        f"## Use\n\n```python\n{_use(record, repository)}\n```\n\n"
        f"## Training\n\n{table(rows)}\n\n"
        f"## Metrics\n\n{_metrics(record.get('evaluation'))}\n\nThe record is `{EXPORT}`.\n"
    )
    return head, body


def _use(record: dict[str, Any], repository: str) -> str:
    dtype = record.get("dtype", "float32")
    lines = ["from diffusers import DiffusionPipeline", ""]
    options = "" if dtype == "float32" else f", torch_dtype=torch.{dtype}"
    if options:
        lines.insert(0, "import torch")
    sides = ", height={}, width={}".format(*record["size"]) if record.get("size") else ""
    lines += [
        f'pipe = DiffusionPipeline.from_pretrained("{repository}"{options})',
        f'image = pipe("a prompt", num_inference_steps=1, guidance_scale=1{sides}).images[0]',
    ]
    return "\n".join(lines)


def _metrics(evaluation: dict[str, Any] | None) -> str:
    if not evaluation:
        return "This checkpoint has no record of an evaluation."
    protocol = f"Protocol {_cell(evaluation['protocol'])} (digest {_cell(evaluation['protocol_digest'])})."
    values = {name.partition("/")[2]: value for name, value in evaluation["metrics"].items()}
    return f"{protocol}\n\n{table(values)}"


def _weights(record: dict[str, Any], repository: str) -> tuple[dict[str, Any], str]:
    space = LatentSpace(**json.loads(record["latent_space"])).checked(record["file"])
    rows = {
        "channels of the latent": space.channels,
        "pixels to a latent": space.factor,
        "latent of the model": space.equation(),
        "width": record["width"],
        "heads": "calibrated" if record["heads"] else "none: LatentVGG16 alone",
    }
    file = record["file"]
    body = (
        f"A perceptual distance on latents (LatentLPIPS), as in {PAPER}, for diffgan.\n\n{table(rows)}\n\n"
        f"## Use\n\n```bash\nhf download {repository} {file} --local-dir .\n```\n\n"
        f'```python\nfrom diffgan import ELatentLPIPS\n\ndistance = ELatentLPIPS("{file}")\n```\n'
    )
    return {"library_name": "diffgan", "tags": ["diffgan", "perceptual-distance"]}, body


def _pairs(record: dict[str, Any], repository: str) -> tuple[dict[str, Any], str]:
    names = ("pairs", "teacher", "teacher_digest", "steps", "guidance", "precision", "prompts_digest", "seed_base")
    rows = {name.replace("_", " "): record[name] for name in names}
    rows["latent"] = " x ".join(map(str, record["latent_shape"]))
    body = (
        f"Noise-latent pairs of {_cell(record['teacher'])}, for distillation by the method of {PAPER} with diffgan: "
        "latents in float16, seeds of their noises, and prompts, in shards of safetensors.\n\n"
        f"{table(rows)}\n\n"
        f"## Use\n\n```bash\nhf download {repository} --repo-type dataset --local-dir pairs\n"
        "diffgan pairs status pairs\n```\n"
    )
    return {"task_categories": ["text-to-image"], "tags": ["diffgan", "distillation"]}, body


WRITERS: dict[str, Callable[[dict[str, Any], str], tuple[dict[str, Any], str]]] = {
    STUDENT: _student,
    WEIGHTS: _weights,
    PAIRS: _pairs,
}
