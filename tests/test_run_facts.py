"""run.json: on what a run ran, and how far it came."""

import json

from equimid.recipes import recipe
from equimid.records import read_facts
from equimid.runs.facts import note_start, note_training


def test_every_start_is_noted_with_its_command_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/equimid", "pretrain", "my photos", "ser.weight=3"])
    note_start(tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/equimid/__main__.py", "pretrain", "photos"])
    note_start(tmp_path)
    first, second = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert first["command"] == "equimid pretrain 'my photos' ser.weight=3"
    assert second["command"] == "equimid pretrain photos"
    assert {"date", "processor", "python", "torch", "equimid", "commit", "threads"} <= set(first)


def test_the_facts_of_the_training_keep_the_starts(tmp_path):
    note_start(tmp_path)
    note_training(recipe("ser-multicrop-tiny"), tmp_path)
    facts = read_facts(tmp_path)
    assert len(facts["starts"]) == 1
    assert facts["views_of_an_image"] == 6
    assert "steps" not in facts, "there is no checkpoint"


def test_a_damaged_file_is_written_anew(tmp_path):
    for content in ("{", "[1]", '{"starts": 3}'):
        (tmp_path / "run.json").write_text(content)
        note_start(tmp_path)
        assert len(read_facts(tmp_path)["starts"]) == 1
