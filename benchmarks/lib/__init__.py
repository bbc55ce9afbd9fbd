"""Parts of the benchmarks: fair timing, reference implementations, options."""
