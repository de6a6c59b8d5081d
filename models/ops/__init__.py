"""What a device computes.

``operations`` is the seam: the verbs that layers call. ``cpu/`` and ``gpu/`` implement them. ``reference`` is the slow,
obvious specification of each operation.
"""
