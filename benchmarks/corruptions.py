"""Seconds an image of every generated corruption, the mean of its five severities, one process.

OMP_NUM_THREADS=1 python benchmarks/corruptions.py [--sizes 32 224] [--times 5]
"""

import argparse
import platform
import time

import numpy as np

from equimid.evaluation.robustness.corruptions import KINDS, SEVERITIES, VALIDATION_KINDS, corrupt


def milliseconds(kind: str, image: np.ndarray, times: int) -> float:
    """Of one image: the least of `times` rounds over the severities, so that other work on the machine counts least."""
    rounds = []
    for seed in range(times):
        began = time.perf_counter()
        for severity in SEVERITIES:
            corrupt(image, kind, severity, np.random.default_rng(seed))
        rounds.append((time.perf_counter() - began) / len(SEVERITIES))
    return 1000 * min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    print(f"numpy {np.__version__}, {platform.processor() or platform.machine()}, ms an image")
    print(f"{'':<20}" + "".join(f"{size:>8} px" for size in arguments.sizes))
    images = [np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8) for size in arguments.sizes]
    total = np.zeros(len(images))
    for kind in (*KINDS, *VALIDATION_KINDS):
        found = [milliseconds(kind, image, arguments.times) for image in images]
        total += found if kind in KINDS else 0
        print(f"{kind:<20}" + "".join(f"{ms:>11.2f}" for ms in found), flush=True)
    print(f"{'sum of the 15':<20}" + "".join(f"{ms:>11.2f}" for ms in total))


if __name__ == "__main__":
    main()
