"""Networks of others on the page, and numbers of others: neither is taken for what was run here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from equimid.errors import UserError
from equimid.records import Record, write_records
from equimid.report.published import LAYERS, PUBLISHED
from fake_runs import Page, fake_measured, fake_run, record, report


def trained(path: Path, addons: dict[str, Any], views: str | None, *records: Record, method: str = "mocov3") -> Path:
    """A run of that method, those add-ons and views."""
    fake_run(path, records=False, ser=False)
    config = yaml.safe_load((path / "config.yaml").read_text()) | addons | {"method": {"name": method}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    seen = [] if views is None else [record("training", "views", 2.0, details={"setting": views})]
    write_records(path / "records.jsonl", [*records, *seen])
    return path


def comparison(page: Page) -> dict[str, list[str]]:
    """{method: its cells as HTML} of the published table."""
    table = page.source.split('<h2 id="published">')[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    return {head: re.findall(r"<td.*?</td>", cells, re.DOTALL) for head, cells in rows}


def test_what_was_measured_stands_beside_what_was_published_and_looks_unlike_it(tmp_path: Path) -> None:
    whole = record("linear", "top1", 61.5, data="imagenet", n=50_000)
    run = trained(tmp_path / "mine", {"ser": {"weight": 1.0, "layers": [3]}}, "2 x 224", whole)
    rows = comparison(report(tmp_path, run))
    assert len(rows) == len(PUBLISHED)
    cells = rows["MoCo-v3 + SER, 2 views (as mine)"]
    assert ["69.28 %" in cells[0], "61.5 %" in cells[1], "17.68 %" in cells[2]] == [True] * 3
    assert ['class="published"' in cell for cell in cells] == [True, False, True, True, True]
    assert [head for head in rows if "mine" in head] == ["MoCo-v3 + SER, 2 views (as mine)"]
    assert rows["MoCo-v3, 2 views"][1] == "<td>–</td>"


@pytest.mark.parametrize(("evaluation", "n", "shown"), [("linear", 10_000, 4), ("imagenet_v2", 10_000, 5)])
def test_other_test_images_are_not_put_beside(tmp_path: Path, evaluation: str, n: int, shown: int) -> None:
    run = trained(tmp_path / "mine", {}, "2 x 224", record(evaluation, "top1", 61.5, data="some", n=n))
    assert len(comparison(report(tmp_path, run))["MoCo-v3, 2 views (as mine)"]) == shown


@pytest.mark.parametrize(
    ("addons", "views", "row"),
    [
        (("ser",), "2 x 224 + 4 x 96", "MoCo-v3 + SER, 2+4 views"),
        (("equimod",), "3 x 224", "MoCo-v3 + EquiMod, 3 views"),
        (("essl",), "2 x 224 + 4 x 96", "MoCo-v3 + E-SSL, 2+4 views"),
        (("stl",), None, "MoCo-v3 + STL, 2 views"),
        (("ser",), None, None),  # two rows, and nobody knows which
        (("ser",), "2 x 224 + 6 x 96", None),
        (("ser", "augself"), "2 x 224", None),
    ],
)
def test_a_run_stands_beside_its_own_row_alone(
    tmp_path: Path, addons: tuple[str, ...], views: str | None, row: str | None
) -> None:
    plain = trained(tmp_path / "base", {}, "2 x 224")
    run = trained(tmp_path / "mine", {name: {"weight": 1.0} for name in addons}, views)
    heads = [head for head in comparison(report(tmp_path, plain, run)) if "mine" in head]
    assert heads == ([f"{row} (as mine)"] if row else [])


def test_methods_without_published_rows_have_none_shown(tmp_path: Path) -> None:
    assert "69.28" not in report(tmp_path, trained(tmp_path / "a", {}, "2 x 224", method="simclr")).source
    dino = report(tmp_path, trained(tmp_path / "b", {"ser": {"weight": 1.0}}, "2 x 224", method="dino"))
    assert "SER on DINO" in dino.text
    assert "+0.26 points" in dino.text


def test_published_numbers_agree_where_the_paper_gives_them_twice() -> None:
    linear = {(row.addons, row.views): row.top1[0] for row in PUBLISHED}
    assert LAYERS[0].linear == linear[frozenset(), "2"]
    assert LAYERS[1].linear == linear[frozenset({"ser"}), "2"]


def test_a_measured_network_is_compared_with_a_run(tmp_path: Path) -> None:
    page = report(tmp_path, fake_run(tmp_path / "run"), fake_measured(tmp_path / "theirs"))
    table = page.source.split('class="numbers"')[1].split("</table>")[0]
    heads = re.findall(r'"row">(.*?)<', table)
    # networks of unlike shape, and pixels that came to the same
    assert heads == ["run", "theirs", "random network (run)", "random network (theirs)", "raw pixels"]
    assert "+10.0 points" in table
    settings = page.source.split("What differs")[2].split("</table>")[0]
    assert re.findall(r'"row">(.*?)<', settings) == ["model", "weights"]
    assert "theirs</strong> has no metrics" not in page.source
    assert "All settings of theirs: model.yaml" in page.text


def test_a_measured_network_alone(tmp_path: Path) -> None:
    page = report(tmp_path, fake_measured(tmp_path / "theirs", "timm:vit_tiny"))
    listed = [str(a["href"])[1:] for a in page.all("a")]
    assert listed == ["run", "evaluation", "equivariance"]
    assert "timm:vit_tiny, pretrained weights: 74.5 % linear top-1 on frozen features; a random network" in page.text
    assert "add-ons" not in page.text


def test_a_network_of_random_weights_is_the_subject_of_its_folder(tmp_path: Path) -> None:
    random = fake_measured(tmp_path / "random", weights="random")
    page = report(tmp_path, random, fake_measured(tmp_path / "theirs"))
    table = page.source.split('class="numbers"')[1].split("</table>")[0]
    assert re.findall(r'"row">(.*?)<', table) == ["random", "theirs", "random network", "raw pixels"]
    assert "random 64.5 % linear top-1, theirs 74.5 %" in page.text
    assert "not evaluated" not in page.text


def test_an_empty_folder_of_measurements_is_told(tmp_path: Path) -> None:
    theirs = fake_measured(tmp_path / "theirs")
    (theirs / "records.jsonl").unlink()
    assert "holds no records" in report(tmp_path, theirs).text


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.yaml and no model\.yaml"):
        report(tmp_path, tmp_path / "empty")


def test_settings_that_are_not_text_are_refused(tmp_path: Path) -> None:
    theirs = fake_measured(tmp_path / "theirs")
    (theirs / "model.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        report(tmp_path, theirs)


def test_a_control_is_not_the_method_that_it_is_a_control_of(tmp_path: Path) -> None:
    own = trained(tmp_path / "mine", {"ser": {"weight": 1.0, "layers": [3]}}, "2 x 224")
    control = trained(tmp_path / "control", {"ser": {"weight": 0.0, "layers": [3]}}, "2 x 224")
    named = [head for head in comparison(report(tmp_path, own, control)) if "as " in head]
    assert named == ["MoCo-v3 + SER, 2 views (as mine)"]
