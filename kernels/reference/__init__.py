"""What the kernels compute, from the float64 reference: slow, right, and on every device and dtype."""
