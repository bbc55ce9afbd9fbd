"""Time and memory of `patch_ntxent`, forward and backward, each size in a process of its own.

    python benchmarks/patch_loss.py [--patches 4704 18816 50176] [--width 128]

"products" are the bare matrix products that it needs, timed in the same process: the similarities on and above the
diagonal forward, again in the backward pass, and twice the same for the gradient. Memory is the growth of the
process's peak; one dense similarity matrix of both views is printed beside it.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time

import torch

from equimid.losses import patch_ntxent

BLOCK = 1024


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_products(z: torch.Tensor) -> float:
    """Seconds of the matrix products alone."""
    blocks = [z[a : a + BLOCK] for a in range(0, len(z), BLOCK)]
    out = torch.zeros_like(blocks[0])
    began = time.perf_counter()
    for times in range(2):
        for i, a in enumerate(blocks):
            for b in blocks[i:]:
                s = a @ b.T
                if times:
                    out[: len(a)].addmm_(s, b)
                    out[: len(b)].addmm_(s.T, a)
    return time.perf_counter() - began


def measure(patches: int, width: int) -> None:
    torch.manual_seed(0)
    z0, z1 = (torch.randn(patches, width, requires_grad=True) for _ in range(2))
    ids = torch.arange(patches) // 196
    patch_ntxent(z0[:392], z1[:392], ids[:392], 0.3).backward()
    z0.grad = z1.grad = None
    before = peak_mib()
    began = time.perf_counter()
    loss = patch_ntxent(z0, z1, ids, 0.3)
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    extra = peak_mib() - before
    products = bare_products(torch.cat([z0, z1]).detach())
    dense = (2 * patches) ** 2 * 4 / 2**30
    print(
        f"{patches:>8} {middle - began:>9.2f} {end - middle:>10.2f} {products:>10.2f} "
        f"{(end - began) / products:>7.2f} {extra:>10.0f} {dense:>10.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[4704, 18816, 50176])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one, arguments.width)
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, "
        f"float32, width {arguments.width}"
    )
    print(" patches forward s backward s products s   ratio  extra MiB  dense GiB", flush=True)
    for patches in arguments.patches:
        subprocess.run([sys.executable, __file__, "--one", str(patches), "--width", str(arguments.width)], check=True)


if __name__ == "__main__":
    main()
