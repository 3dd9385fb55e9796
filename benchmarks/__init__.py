"""Measurements that take minutes to hours; run one with ``python -m benchmarks.NAME`` in the repository root.

No part of the installed package. What they found is in ``docs/``, the numbers in full in ``results/``.
"""
