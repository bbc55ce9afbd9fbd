"""Networks of others on the page, and numbers of others: neither is taken for what was run here."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from equimid.config import save_config
from equimid.errors import UserError
from equimid.recipes import ROWS, configured
from equimid.records import Record, write_records
from equimid.report.published import LAYERS, PUBLISHED, published_row
from equimid.report.read_run import read_run
from helpers.fake_runs import Page, fake_measured, fake_run, record, report

PROBE = {"crops": True, "features": "last4", "epochs": 50, "rate": 1.0}


def trained(
    path: Path, recipe: str, *records: Record, settings: tuple[str, ...] = (), views: str | None = "", images: int = 0,
    **facts: int,
) -> Path:  # fmt: skip
    """A run of the recipe at size imagenet, as it lies there when it is measured. views: what run.json says of them,
    by default what is true, None = no such file; images: that it was trained on, by default ImageNet-1k's; facts: what
    run.json says beside."""
    config = configured(f"{recipe}-imagenet", settings)
    path.mkdir()
    save_config(config, path / "config.yaml")
    listed = images or 1_281_167
    (path / "data.json").write_text(json.dumps({"schema": 1, "usable": listed, "listed": listed, "unreadable": []}))
    label = config.plan().label if views == "" else views
    if label is not None:
        (path / "run.json").write_text(json.dumps({"views": label, **facts}))
    write_records(path / "records.jsonl", [*records])
    return path


def linear(value: float, n: int = 50_000, **details: Any) -> Record:
    """Of the published probe on ImageNet's validation images, but for `details`."""
    return record("linear", "top1", value, data="imagenet", n=n, details=PROBE | details)


def comparison(page: Page) -> dict[str, list[str]]:
    """{method: its cells as HTML} of the published table."""
    table = page.source.split('<h2 id="published">')[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    return {head: re.findall(r"<td.*?</td>", cells, re.DOTALL) for head, cells in rows}


def section(page: Page) -> str:
    """The words of the published section."""
    text = page.source.split('<h2 id="published">')[1].split("</section>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


# the specification's section 11, by recipe: label and views of the row, top-1 on ImageNet-1k, Sketch, V2 and R
TABLE = {
    "mocov3": ("MoCo-v3, 2", 68.44, 17.65, 56.54, 18.59),
    "augself": ("MoCo-v3 + AugSelf, 2", 67.55, 13.30, 53.74, 17.62),
    "stl": ("MoCo-v3 + STL, 2", 65.49, 15.40, 55.43, 17.22),
    "ser": ("MoCo-v3 + SER, 2", 69.28, 17.68, 56.95, 18.95),
    "ser-layer9-cls9": ("MoCo-v3 + SER at layer 9, 2", 68.72),
    "ser-layer12-cls0": ("MoCo-v3 + SER at layer 12, 2", 68.18),
    "control": ("MoCo-v3 + SER, weight 0 (control), 2", 68.82),
    "augself-layer3": ("MoCo-v3 + AugSelf at layer 3, 2", 68.23),
    "augself-layer3-cls": ("MoCo-v3 + AugSelf at layer 3, 2", 68.23),
    "equimod": ("MoCo-v3 + EquiMod, 3", 68.95, 14.81, 56.31, 16.54),
    "equimod-layer3": ("MoCo-v3 + EquiMod at layer 3, 3", 69.51),
    "essl": ("MoCo-v3 + E-SSL, 2+4", 70.60, 19.23, 58.33, 19.86),
    "ser-multicrop": ("MoCo-v3 + SER, 2+4", 71.56, 19.76, 59.50, 20.27),
}


def row_of(path: Path) -> str | None:
    """The published row that the run stands beside."""
    row = published_row(read_run(path, "run", 0))
    return None if row is None else f"{row.label}, {row.views}"


def test_the_numbers_are_those_of_the_paper() -> None:
    sets = ("linear", "imagenet_sketch", "imagenet_v2", "imagenet_r")
    told = {label: dict(zip(sets, numbers, strict=False)) for label, *numbers in TABLE.values()}
    assert {f"{row.label}, {row.views}": dict(row.top1) for row in PUBLISHED} == told
    assert len(PUBLISHED) == len(told)
    assert [(row.top1["linear"], row.rotation) for row in LAYERS] == [
        (68.44, 0.804), (69.28, 0.840), (68.72, 0.888), (68.18, 0.924), (68.82, None)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_stands_beside_the_row_whose_number_it_carries(tmp_path: Path, name: str) -> None:
    found = row_of(trained(tmp_path / "run", name))
    assert found == (TABLE[name][0] if name in TABLE else None)
    assert ROWS[name].published == (f"{TABLE[name][1]:.2f}" if name in TABLE else "")


@pytest.mark.parametrize(
    ("recipe", "setting"),
    [
        ("ser", "ser.layers=9"),
        ("ser", "ser.layers=3,9"),
        ("ser", "ser.layer_weights=0"),
        ("ser", "ser.form=cross_view"),
        ("ser", "ser.source=shared_crop"),
        ("ser", "ser.temperature=0.5"),
        ("ser", "ser.detached=true"),
        ("ser", "ser.complement=true"),
        ("ser", "backbone.cls_layer=0"),
        ("ser", "backbone.image_size=96"),
        ("ser", "backbone.name=vit_tiny_patch16_224"),
        ("ser", "backbone.depth=6"),
        ("ser", "backbone.num_heads=12"),
        ("ser", "train.epochs=300"),
        ("ser", "train.batch_size=4096"),
        ("ser", "train.steps=1000"),
        ("ser", "train.accumulate=2"),
        ("ser", "views.full=3"),
        ("ser", "views.local.count=2"),
        ("ser-multicrop", "views.local.size=64"),
        ("ser", "evaluation.network=momentum"),
        ("ser", "essl.weight=0.4"),
        ("control", "ser.layers=9"),
        ("control", "ser.complement=true"),
        ("ser-layer9-cls9", "ser.weight=0"),
        ("augself", "augself.form=original"),
        ("augself", "augself.flip=0.1"),
        ("augself", "augself.weight=0"),
        ("augself", "augself.layer=9"),
        ("mocov3", "backbone.cls_layer=3"),
    ],
)
def test_one_setting_of_another_value_and_a_run_stands_beside_no_row(tmp_path: Path, recipe: str, setting: str) -> None:
    assert row_of(trained(tmp_path / "like", recipe)) == TABLE[recipe][0]
    assert row_of(trained(tmp_path / "unlike", recipe, settings=(setting,))) is None


def test_what_the_paper_does_not_fix_is_not_compared(tmp_path: Path) -> None:
    free = ("ser.weight=0.3", "ser.fraction=0.01", "ser.grids=0", "optim.lr=1e-4", "seed=7", "runtime.workers=2")
    assert row_of(trained(tmp_path / "run", "ser", settings=free)) == TABLE["ser"][0]


@pytest.mark.parametrize(("negatives", "alike"), [(None, True), ("images", True), ("all", False)])
def test_negatives_of_the_same_image_are_not_the_papers(tmp_path: Path, negatives: str | None, alike: bool) -> None:
    run = trained(tmp_path / "run", "ser")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["ser"].pop("negatives", None)
    config["ser"] |= {} if negatives is None else {"negatives": negatives}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert row_of(run) == (TABLE["ser"][0] if alike else None)


def test_images_or_steps_of_another_number_are_another_training(tmp_path: Path) -> None:
    assert row_of(trained(tmp_path / "few", "ser", images=50_000)) is None
    unknown = trained(tmp_path / "unknown", "ser")
    (unknown / "data.json").unlink()
    assert row_of(unknown) is None
    assert row_of(trained(tmp_path / "stopped", "ser", steps=9, total_steps=62_500)) is None
    older = trained(tmp_path / "older", "ser")
    config = yaml.safe_load((older / "config.yaml").read_text())
    del config["views"]
    (older / "config.yaml").write_text(yaml.safe_dump(config))
    assert row_of(older) is None, "nobody knows how many small views"


def test_what_was_measured_stands_beside_what_was_published_and_looks_unlike_it(tmp_path: Path) -> None:
    run = trained(tmp_path / "mine", "ser", linear(61.5))
    rows = comparison(report(tmp_path, run))
    assert len(rows) == len(PUBLISHED)
    cells = rows["MoCo-v3 + SER, 2 views (as mine)"]
    assert ["69.28 %" in cells[0], "61.5 %" in cells[1], "17.68 %" in cells[2]] == [True] * 3
    assert ['class="published"' in cell for cell in cells] == [True, False, True, True, True]
    assert [head for head in rows if "mine" in head] == ["MoCo-v3 + SER, 2 views (as mine)"]
    assert rows["MoCo-v3, 2 views"][1] == "<td>–</td>"


@pytest.mark.parametrize(("evaluation", "n", "shown"), [("linear", 10_000, 4), ("imagenet_v2", 10_000, 5)])
def test_other_test_images_are_not_put_beside(tmp_path: Path, evaluation: str, n: int, shown: int) -> None:
    found = record(evaluation, "top1", 61.5, data="some", n=n, details=PROBE | {"classes": 1000})
    page = report(tmp_path, trained(tmp_path / "mine", "mocov3", found))
    assert len(comparison(page)["MoCo-v3, 2 views (as mine)"]) == shown
    assert ("it is of 10,000 test images, and the paper's of 50,000" in section(page)) == (shown == 4)


@pytest.mark.parametrize("evaluation", ["imagenet_v2", "imagenet_sketch"])
def test_a_part_of_the_classes_is_not_put_beside(tmp_path: Path, evaluation: str) -> None:
    found = record(evaluation, "top1", 61.5, data="some", details=PROBE | {"classes": 999})
    page = report(tmp_path, trained(tmp_path / "mine", "mocov3", found))
    assert len(comparison(page)["MoCo-v3, 2 views (as mine)"]) == 4
    assert "it is not of all 1,000 classes" in section(page)


@pytest.mark.parametrize("details", [{"crops": False}, {"features": "cls"}, {"epochs": 100}])
@pytest.mark.parametrize("evaluation", ["linear", "imagenet_sketch"])
def test_another_probe_is_not_put_beside(tmp_path: Path, evaluation: str, details: dict[str, Any]) -> None:
    """The probe on cached centre crops beside one on random crops, before all."""
    other = PROBE | {"classes": 1000} | details
    found = record(evaluation, "top1", 61.5, data="imagenet", n=50_000, details=other)
    page = report(tmp_path, trained(tmp_path / "mine", "ser", found))
    cells = comparison(page)["MoCo-v3 + SER, 2 views (as mine)"]
    assert len(cells) == 4
    assert not any("61.5" in cell for cell in cells)
    assert "evaluation.linear_crops" in section(page)


def test_imagenet_r_is_beside_nothing_among_any_classes(tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": "r", "n": 30_000}
    found = [
        record("imagenet_r", "top1", 61.5, details=PROBE | {"classes": 200, "restricted_to": 200}, **common),
        record("imagenet_r", "top1_all", 51.5, details=PROBE | {"classes": 200, "among": 1000}, **common),
    ]
    page = report(tmp_path, trained(tmp_path / "mine", "ser", *found))
    cells = comparison(page)["MoCo-v3 + SER, 2 views (as mine)"]
    assert len(cells) == 4
    assert "18.95 %" in cells[3]
    assert not any("1.5 %" in cell for cell in cells)
    assert "whether predictions are among its 200 classes or among all 1,000" in section(page)
    heads = page.source.split('<h2 id="robustness">')[1].split("</thead>")[0]
    assert "ImageNet-R top-1 among all classes" in heads


@pytest.mark.parametrize(
    ("recipe", "views", "row"),
    [
        ("ser-multicrop", "2 x 224 + 4 x 96", "MoCo-v3 + SER, 2+4 views"),
        ("equimod", "3 x 224", "MoCo-v3 + EquiMod, 3 views"),
        ("essl", "2 x 224 + 4 x 96", "MoCo-v3 + E-SSL, 2+4 views"),
        ("stl", None, "MoCo-v3 + STL, 2 views"),
        ("ser", None, "MoCo-v3 + SER, 2 views"),  # its settings tell
        ("ser", "2 x 224 + 6 x 96", None),
        ("ser-3view", "3 x 224", None),
        ("mocov3-3view", "3 x 224", None),
        ("mocov3-multicrop", "2 x 224 + 4 x 96", None),
        ("late-cls", "2 x 224", None),
        ("late-cls9", "2 x 224", None),
        ("ser-layer9", "2 x 224", None),
        ("ser-layer12", "2 x 224", None),
        ("ser-detached", "2 x 224", None),
        ("ser-complement", "2 x 224", None),
        ("augself-layer3", "2 x 224", "MoCo-v3 + AugSelf at layer 3, 2 views"),
        ("augself-layer3-cls", "2 x 224", "MoCo-v3 + AugSelf at layer 3, 2 views"),
    ],
)
def test_a_run_stands_beside_its_own_row_alone(tmp_path: Path, recipe: str, views: str | None, row: str | None) -> None:
    plain = trained(tmp_path / "base", "mocov3")
    page = report(tmp_path, plain, trained(tmp_path / "mine", recipe, linear(61.5), views=views))
    heads = [head for head in comparison(page) if "mine" in head]
    assert heads == ([f"{row} (as mine)"] if row else [])
    measured = [head for head, cells in comparison(page).items() if any("61.5 %" in cell for cell in cells)]
    assert measured == heads
    assert ("mine stands beside no published number" in section(page)) == (row is None)


def test_two_add_ons_are_no_row(tmp_path: Path) -> None:
    both = trained(tmp_path / "mine", "ser", settings=("augself.weight=1",))
    page = report(tmp_path, trained(tmp_path / "base", "mocov3"), both)
    assert [head for head in comparison(page) if "mine" in head] == []


def test_what_keeps_a_run_from_its_row_is_said(tmp_path: Path) -> None:
    page = report(tmp_path, trained(tmp_path / "mine", "ser-layer9"))
    assert "differs from MoCo-v3 + SER, 2 views in ser.layers 9." in section(page)
    two = report(tmp_path, trained(tmp_path / "late", "late-cls"), trained(tmp_path / "later", "late-cls"))
    assert section(two).count("late, later stands beside no published number; it differs from MoCo-v3, 2 views in") == 1
    small = report(tmp_path, fake_run(tmp_path / "small"))
    assert re.search(r"differs from MoCo-v3 \+ SER, .* and \d+ more\.", section(small))


def test_what_a_row_does_not_say_is_said_where_a_run_stands_beside_it(tmp_path: Path) -> None:
    layer3, last, ser = (trained(tmp_path / n, n) for n in ("augself-layer3", "ser-layer12-cls0", "ser"))
    words = section(report(tmp_path, layer3, last))
    assert "the paper does not say whether it reads the mean token of the layer or CLS after it" in words
    assert "CLS cannot enter after the last block" in words
    assert "CLS cannot enter" not in section(report(tmp_path, ser))


def test_methods_without_published_rows_have_none_shown(tmp_path: Path) -> None:
    assert "69.28" not in report(tmp_path, trained(tmp_path / "a", "simclr")).source
    dino = report(tmp_path, trained(tmp_path / "b", "dino-ser"))
    assert "SER on DINO" in dino.text
    assert "+0.26 points" in dino.text


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
    own = trained(tmp_path / "mine", "ser", linear(61.5))
    control = trained(tmp_path / "control", "control", linear(59.5))
    rows = comparison(report(tmp_path, own, control))
    named = [head for head in rows if "as " in head]
    assert named == ["MoCo-v3 + SER, 2 views (as mine)", "MoCo-v3 + SER, weight 0 (control), 2 views (as control)"]
    ser, weightless = (rows[name] for name in named)
    assert ["69.28 %" in ser[0], "61.5 %" in ser[1], "59.5 %" in ser[1]] == [True, True, False]
    assert ["68.82 %" in weightless[0], "59.5 %" in weightless[1], "61.5 %" in weightless[1]] == [True, True, False]
    assert [re.sub("<.*?>", "", cell) for cell in weightless[2:]] == ["–"] * 3  # the paper gives its linear top-1 alone
