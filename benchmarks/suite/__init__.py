"""The benchmarks, one file per family. `benchmarks/run.py` runs them."""
