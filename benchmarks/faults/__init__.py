"""Faults at every file operation: processes that are killed, writes that are torn, disks that are full."""
