"""The table of speeds: a record for each row, measured once."""

import json

from tests.bench import speed_table

ROWS = {"mse", "pixel_lpips", "e_latent_lpips", "teacher", "student"}


def test_every_row_is_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed_table, "BATCHES", {"glyphs": 1})
    monkeypatch.setattr(speed_table, "STEPS", 2)
    monkeypatch.setattr(speed_table, "ROUNDS", 1)
    words = ["--records", str(tmp_path / "records")]
    assert speed_table.main(words) == 0
    files = {file.stem: file for file in (tmp_path / "records").iterdir()}
    assert set(files) == ROWS
    records = {name: json.loads(file.read_text()) for name, file in files.items()}
    assert all(record["metrics"]["speed/milliseconds"] > 0 for record in records.values())
    assert records["teacher"]["metrics"]["speed/network_calls"] == 2
    content = {name: file.read_bytes() for name, file in files.items()}
    files["mse"].unlink()
    capsys.readouterr()
    assert speed_table.main(words) == 0
    assert capsys.readouterr().out.count("is measured") == len(ROWS) - 1
    assert all(file.read_bytes() == content[name] for name, file in files.items() if name != "mse")
    assert files["mse"].is_file()
