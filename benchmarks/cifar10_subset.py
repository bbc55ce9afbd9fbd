"""The first images of every class of CIFAR-10, as folders: 5,000 to train on and 2,000 to test on.

    python benchmarks/cifar10_subset.py CIFAR OUT

CIFAR holds train/<class>/*.jpg and test/<class>/*.jpg.
"""

import shutil
import sys
from pathlib import Path


def main(source: Path, out: Path) -> None:
    for split, count in (("train", 500), ("test", 200)):
        for folder in sorted((source / split).iterdir()):
            target = out / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, target / file.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
