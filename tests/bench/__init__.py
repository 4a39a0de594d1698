"""The benchmarks: each measures one promise of the product beside what a user would run instead and beside the floor.

Figures are never pass or fail: a target is printed with whether it was met, and a slow machine is no error.
"""
