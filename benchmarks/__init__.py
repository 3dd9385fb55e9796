"""Measurements that take minutes to hours; run one with ``python -m benchmarks.NAME`` in the repository root.

``python -m benchmarks`` lists them, with what each claims. They are no part of the installed package. What
they found is in ``docs/``, the numbers in full in ``results/``.
"""
