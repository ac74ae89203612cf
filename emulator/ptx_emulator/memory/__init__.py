"""Memories of a device with their checks: bounds, alignment, what was never written, what is in flight, races."""
