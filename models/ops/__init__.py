"""What a device computes.

``operations`` is the seam: the verbs that layers call. ``cpu/`` stands behind it today. ``reference`` is the slow,
obvious specification of each operation.
"""
