"""Is the mAP that was recorded pycocotools' own? On the detections of a measured folder and the boxes of a VOC folder.

    python benchmarks/map_check.py --data BCCD FOLDER...

FOLDER: one that `equimid evaluate detection` or `benchmarks/detection.py --out` wrote. Prints the recorded values and
the largest difference.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from equimid.evaluation.detection import open_detection
from equimid.records import read_records

STATISTICS = {"map": 0, "map_50": 1, "map_75": 2, "mar_100": 8}


def labelled(data):
    """pycocotools' ground truth of the test images, and the number of each file name."""
    test = open_detection(data, "test")
    boxes = [
        {"image_id": i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
         "iscrowd": int(ignored)}
        for i in range(len(test.images))
        for (x0, y0, x1, y1), label, ignored in zip(
            test.boxes[i].tolist(), test.labels[i].tolist(), test.ignored[i].tolist(), strict=True
        )
    ]  # fmt: skip
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(test.images))],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, start=1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(test.classes)],
    }
    truth.createIndex()
    return truth, {Path(path).name: i for i, path in enumerate(test.images)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    worst = 0.0
    for folder in given.folders:
        (file,) = folder.glob("detections_*.json")
        found = json.loads(file.read_text())
        first = min(detection["category_id"] for detection in found)  # from 0 or from 1
        with contextlib.redirect_stdout(io.StringIO()):
            truth, numbers = labelled(given.data)
            for detection in found:
                detection["image_id"] = numbers[Path(detection["file_name"]).name]
                detection["category_id"] -= first
            peer = COCOeval(truth, truth.loadRes(found), "bbox")
            peer.evaluate()
            peer.accumulate()
            peer.summarize()
        records = [r for r in read_records(folder / "records.jsonl") if r.subject != "untrained neck"]
        whole = {r.metric: r.value / 100 for r in records if r.metric in STATISTICS and "class" not in r.details}
        worst = max(worst, *(abs(value - peer.stats[STATISTICS[metric]]) for metric, value in whole.items()))
        print(folder.name, {metric: round(100 * value, 3) for metric, value in whole.items()})
    print(f"largest difference {worst:.1e} over {len(given.folders)} folders")


if __name__ == "__main__":
    main()
