"""The settings with which a run read its data are found again, so that new data is read the same way."""

from pathlib import Path

from loratory.config import Config
from loratory.settings import DataConfig
from loratory.storage import RunRecord, data_settings, resolved_text, write_record, write_text


def test_the_data_settings_of_a_run_are_those_of_its_adapter(tmp_path: Path):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    data = DataConfig(train=("a.xlsx",), answer="label", header=False, sheet="Notes")
    write_text(run / "config.toml", resolved_text(Config(data=data)))
    write_record(run, RunRecord("finished"))
    for path in (run, run / "adapter"):
        found = data_settings(path)
        assert (found.header, found.sheet) == (False, "Notes")


def test_an_adapter_without_its_run_reads_data_with_the_defaults(tmp_path: Path):
    assert data_settings(tmp_path) == DataConfig()
    write_record(tmp_path, RunRecord("finished"))
    (tmp_path / "config.toml").write_text("damaged [")
    assert data_settings(tmp_path) == DataConfig()
