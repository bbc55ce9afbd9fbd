"""What equimid costs on this machine, each figure beside another one of the same run: `equimid bench`."""

from equimid.benchmarks.bench import bench, results_folder

__all__ = ["bench", "results_folder"]
