"""The first images of every class of CIFAR-10, as folders: 5,000 to train on and 2,000 to test on, or as many as asked.

    python benchmarks/cifar10_subset.py CIFAR OUT [--train 500] [--test 200]

CIFAR holds train/<class>/*.jpg and test/<class>/*.jpg; both numbers are images of each class.
"""

import argparse
import shutil
from pathlib import Path


def main(source: Path, out: Path, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        for folder in sorted((source / split).iterdir()):
            files = sorted(folder.iterdir())
            if len(files) < count:
                raise SystemExit(f"{folder} has {len(files)} images; --{split} asks for {count} of each class")
            target = out / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for file in files[:count]:
                shutil.copy(file, target / file.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--test", type=int, default=200)
    asked = parser.parse_args()
    main(asked.source, asked.out, {"train": asked.train, "test": asked.test})
