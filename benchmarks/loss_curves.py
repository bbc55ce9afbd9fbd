"""Draw the losses of a run, step by step and as a running mean.

python benchmarks/loss_curves.py RUN OUT.png
"""

import csv
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW = 20


def main(run: Path, out: Path) -> None:
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    steps = np.array([int(row["step"]) for row in rows])
    names = [name for name in rows[0] if name.startswith("loss/")]
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 2.6), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        values = np.array([float(row[name]) for row in rows])
        window = min(WINDOW, len(values))
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        axis.plot(steps, values, color="#b8c4cc", linewidth=0.8)
        axis.plot(steps[window - 1 :], mean, color="#0072b2", linewidth=1.8)
        axis.set(title=name, xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
        tenths = [part.mean() for part in np.array_split(values, 10)]
        print(f"{name}: mean of each tenth of the steps: {', '.join(f'{value:.3f}' for value in tenths)}")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
