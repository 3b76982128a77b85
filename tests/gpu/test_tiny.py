"""The check of a GPU with tiny networks on the CPU, and what its runner does when something goes wrong."""

import json
import subprocess
import sys
import time
import warnings

import pytest
import torch

from tests.gpu.__main__ import main
from tests.gpu.all_parts import PARTS
from tests.gpu.networks import SD15, RandomDistillation, random_teacher
from tests.gpu.parts import (
    FAILED,
    OK,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    Budget,
    Cell,
    NotApplicable,
    Part,
    Setting,
    run_parts,
)
from tests.gpu.report import Report
from tests.gpu.syncs import WAITED, WaitingCalls
from tests.gpu.training import Measured
from tests.pair_sets import wait_until
from tests.processes import SERVER

NEEDS_CUDA = "needs CUDA"


def run(*parts, seconds=60.0, file=None):
    """The record of a check of these parts."""
    report = Report(file)
    run_parts(parts, setting(), report, Budget(seconds))
    return report.record["parts"]


def setting():
    return Setting(tiny=True, device=torch.device("cpu"))


def part(number, *cells, share=1.0, **options):
    return Part(number, f"part {number}", share, lambda _: list(cells), **options)


def statuses(record):
    return {name: cell["status"] for name, cell in record["cells"].items()}


# ---- the whole check ----


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Record and output of `python -m tests.gpu --tiny`."""
    file = tmp_path_factory.mktemp("gpu") / "check.json"
    words = [sys.executable, "-m", "tests.gpu", "--tiny", "--seconds", "900", "--output", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


@pytest.mark.timeout(900)
def test_every_part_runs_on_a_cpu(checked):
    record, _ = checked
    assert record["complete"] and record["tiny"]
    assert list(record["parts"]) == [str(part.number) for part in PARTS]
    for each in record["parts"].values():
        assert each["status"] == OK and each["seconds"] > 0 and each["cells"]
        assert set(statuses(each).values()) <= {OK, NEEDS_CUDA}, each
    assert record["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["rates"]["bf16 matmul TFLOP/s"] > 0


@pytest.mark.timeout(900)
def test_the_chain_resumes_and_exports(checked):
    cells = checked[0]["parts"]["1"]["cells"]
    assert set(statuses(checked[0]["parts"]["1"]).values()) == {OK}
    assert cells["fit, interrupted"]["images"] < cells["fit, resumed"]["images"] == 40
    assert cells["stock diffusers"]["difference"] <= 1e-5


@pytest.mark.timeout(900)
def test_known_values_are_found(checked):
    parts = {number: each["cells"] for number, each in checked[0]["parts"].items()}
    assert parts["3"]["sd15, R1 finite_difference"]["cosine"] == pytest.approx(1, abs=1e-3)
    assert parts["3"]["sdxl, R1 exact"]["norm ratio"] == pytest.approx(1, abs=1e-2)
    for step in (*parts["2"].values(), *parts["6"].values()):
        if step["status"] == OK:
            batch = step["images/s"] * step["s/step"]
            assert batch == pytest.approx(round(batch), rel=1e-3) and 0 < step["share of matmul"] < 1
    assert statuses(checked[0]["parts"]["7"]) == {"waiting calls": NEEDS_CUDA, "kernels": OK}


@pytest.mark.timeout(900)
def test_the_output_is_short_and_has_a_table_for_each_part(checked):
    record, output = checked
    assert len(output) < 12_000
    for number, each in record["parts"].items():
        assert f"**Part {number}: {each['title']}**" in output
        assert all(f"| {name} | {cell['status']} |" in output for name, cell in each["cells"].items())


# ---- the runner ----


def test_a_broken_cell_is_recorded_with_its_place_and_the_rest_runs():
    def broken():
        raise ValueError("first line\nlast line")

    record = run(part(1, Cell("broken", broken), Cell("next", lambda: {"value": 1})), part(2, Cell("other", dict)))
    cell = record["1"]["cells"]["broken"]
    assert cell["status"] == FAILED and cell["error"] == "ValueError: first line ... last line"
    line = broken.__code__.co_firstlineno + 1
    assert cell["place"] == f"tests/gpu/test_tiny.py:{line}"
    assert record["1"]["cells"]["next"]["value"] == 1 and statuses(record["2"]) == {"other": OK}


def test_the_place_names_our_line_and_that_of_the_library():
    record = run(part(1, Cell("broken", lambda: torch.nn.Linear(2, 2)(torch.zeros(3)))))
    own, library = record["1"]["cells"]["broken"]["place"].split(" <- ")
    assert own.startswith("tests/gpu/test_tiny.py:") and "torch/nn/modules/linear.py:" in library


def test_a_part_that_cannot_begin_is_recorded_and_the_rest_runs():
    def no_cells(_):
        raise RuntimeError("no network")

    record = run(Part(1, "broken", 1.0, no_cells), part(2, Cell("other", dict)))
    assert record["1"]["status"] == FAILED and "no network" in record["1"]["error"]
    assert statuses(record["2"]) == {"other": OK}


def test_out_of_memory_is_a_result_and_frees_what_the_part_shares():
    shared = setting()
    shared.once("network", lambda: 1)

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    report = Report(None)
    run_parts([part(1, Cell("large", too_large))], shared, report, Budget(60))
    assert statuses(report.record["parts"]["1"]) == {"large": OUT_OF_MEMORY} and not shared.shared


def test_what_makes_no_sense_here_says_why():
    def on_a_gpu():
        raise NotApplicable("needs 130 GB")

    assert statuses(run(part(1, Cell("large", on_a_gpu)))["1"]) == {"large": "needs 130 GB"}


def test_the_budget_cuts_parts_and_cells():
    slow = Cell("slow", lambda: time.sleep(0.2) or {})
    record = run(part(1, slow, Cell("second", dict)), part(2, Cell("third", dict)), seconds=0.1)
    assert statuses(record["1"]) == {"slow": OK, "second": OUT_OF_TIME}
    assert record["2"]["status"] == OUT_OF_TIME and not record["2"]["cells"]


def test_a_cell_that_needs_more_time_than_is_left_is_not_begun():
    record = run(part(1, Cell("long", dict, seconds=100.0), Cell("short", dict)), seconds=10)
    assert statuses(record["1"]) == {"long": OUT_OF_TIME, "short": OK}


def order_of(first_part_options):
    """The order in which cells run whose first part uses up its share at once."""
    order = []

    def cell(name, seconds=0.0, **options):
        return Cell(name, lambda: time.sleep(seconds) or order.append(name) or {}, **options)

    first = part(1, cell("compiled", last=True), cell("slow", 1.0), cell("second"), share=0.01, **first_part_options)
    record = run(first, part(2, cell("third")))
    assert set(statuses(record["1"]).values()) == {OK}
    return order


def test_a_part_that_used_its_share_puts_cells_off():
    assert order_of({}) == ["slow", "third", "compiled", "second"]


def test_a_chain_of_cells_is_not_put_off():
    assert order_of({"chained": True}) == ["slow", "second", "third", "compiled"]


def test_the_file_is_complete_after_every_cell(tmp_path):
    file = tmp_path / "check.json"
    seen = []

    def look():
        seen.append(json.loads(file.read_text())["parts"]["1"]["cells"])
        return {"ratio": 1 / 3}

    run(part(1, Cell("first", look), Cell("second", look)), file=file)
    assert seen[0] == {} and seen[1]["first"]["ratio"] == 0.33333


def test_a_killed_check_leaves_what_it_found(tmp_path):
    file = tmp_path / "check.json"
    process = SERVER.Process(target=main, args=(["--tiny", "--parts", "3", "--output", str(file)],))
    process.start()
    wait_until(lambda: file.exists() and json.loads(file.read_text())["parts"].get("3", {}).get("cells"), 120)
    process.kill()
    process.join()
    record = json.loads(file.read_text())
    assert not record["complete"] and OK in statuses(record["parts"]["3"]).values()


def test_a_table_has_errors_numbers_and_places():
    report = Report(None)

    def broken():
        raise ValueError("a | b")

    places = {f"file.py:{line}": 0.25 for line in range(20)}
    measured = Cell("counted", lambda: {"per step": 1.23456, "places": places})
    run_parts([part(1, Cell("broken", broken), measured)], setting(), report, Budget(60))
    text = report.text()
    assert "| broken | failed: ValueError: a / b (tests/gpu/test_tiny.py:" in text
    assert "| counted | ok | 1.23 |" in text and "- 0.25: file.py:0" in text and "file.py:19" not in text


# ---- the command line ----


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_check_says_so(capsys):
    assert main([]) == 1
    assert "--tiny" in capsys.readouterr().err


@pytest.mark.parametrize("parts", ["9", "1,x"])
def test_unknown_parts_are_refused(parts, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--tiny", "--parts", parts])
    assert stop.value.code == 2 and "--parts" in capsys.readouterr().err


# ---- what is measured ----


def test_a_waiting_call_is_counted_at_its_place():
    waiting = WaitingCalls()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = waiting.count
        for _ in range(3):
            warnings.warn(f"{WAITED} (Triggered internally)")
        warnings.warn("Synchronization debug mode is a prototype feature")
    ((place, count),) = waiting.places.items()
    assert count == 3 and place.startswith("tests/gpu/test_tiny.py:")


def test_steps_are_measured_from_the_second_batch_on():
    measured = Measured(lambda *_: None)
    measured.marks = [0.0, 1.0, 3.0, 8.0]
    assert measured.step_seconds() == 2.0


def test_a_given_teacher_is_trained_from_and_loses_its_weights():
    teacher = random_teacher(setting(), SD15)
    weights = [weight.clone() for weight in teacher.denoiser.parameters()]
    module = RandomDistillation(teacher, setting(), images=4)
    module.configure_model()
    assert all(map(torch.equal, weights, module.generator.denoiser.parameters()))
    assert {weight.device.type for weight in teacher.parameters()} == {"meta"}
