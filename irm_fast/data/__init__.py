"""Files, rows, logs and ratings; what a signal is; simulation; data sets of the hub. First file to open: `read`."""
