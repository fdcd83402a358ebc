"""Experiments on made or rated data: the demo, and the comparison of all methods (`reproduce`)."""
