"""Products with sparse codes: gathers, segment sums, and Pallas kernels for NVIDIA GPUs."""
