"""Which prompt and seed a pair has."""

import pytest

from datamodules.prompts import Prompts
from diffgan.errors import UserError
from diffgan.prompts import PromptFile


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\n\nc\n")
    return file


def ready(*args, **kwargs) -> Prompts:
    data = Prompts(*args, **kwargs)
    data.setup("predict")
    return data


@pytest.mark.parametrize("repeat", [1, 2, 5])
def test_pairs_cycle_through_repeated_prompts(prompts, repeat):
    data = ready(prompts, pairs=40, seed_base=7, batch_size=11, repeat=repeat)
    wanted = ["abc"[i // repeat % 3] for i in range(40)]
    for numbers in (range(0, 40), range(3, 4), range(5, 23), range(39, 40)):
        batch = data.batch(numbers)
        assert batch.prompt == [wanted[i] for i in numbers]
        assert batch.seed.tolist() == [7 + i for i in numbers]
    batches = list(data.predict_dataloader())
    assert [len(batch.seed) for batch in batches] == [11, 11, 11, 7]
    assert [prompt for batch in batches for prompt in batch.prompt] == wanted


def test_without_a_number_of_pairs_every_prompt_is_repeated(prompts):
    data = ready(prompts, pairs=None, seed_base=0, batch_size=4, repeat=2)
    assert data.pairs == 6 and data.batch(range(6)).prompt == list("aabbcc")


def test_the_digest_includes_the_repetition(prompts):
    once, thrice = (ready(prompts, 9, 0, 4, repeat=repeat).prompts_digest for repeat in (1, 3))
    assert once == PromptFile(prompts).digest and thrice == f"{once} x3"


def test_blank_prompts_are_reported(prompts, capsys):
    ready(prompts, 9, 0, 4)
    assert capsys.readouterr().err == f"diffgan: prompts {prompts}: 3 prompts, 1 blank ones skipped\n"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pairs": 0}, "pairs: 0 must"),
        ({"batch_size": 0}, "batch_size: 0 must"),
        ({"repeat": 0}, "repeat: 0 must"),
        ({"seed_base": -1}, "seed_base: -1"),
        ({"seed_base": 2**32}, "seed_base: 4294967296"),
        ({"seed_base": 2**32 - 8, "pairs": None, "repeat": 3}, "the seeds of 9 images"),
        ({"column": "text"}, "no column 'text'"),
    ],
)
def test_values_out_of_range_are_refused(prompts, change, message):
    with pytest.raises(UserError, match=message):
        ready(**{"prompts": prompts, "pairs": 4, "seed_base": 0, "batch_size": 2, **change})
