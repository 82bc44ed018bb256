"""Number format, kernels, machine and timing: what a compiled program means."""
