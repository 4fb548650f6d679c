"""Fuzzing policies: generated policies on a live lab, held to the oracle; a failure becomes one small file.

choose      pure: which calls tell one set of policies from its neighbours; by ``questions`` and ``confusable`` values
properties  what must hold of a live lab; for tests, too
campaign    many examples on one lab, until the time is over
shrink      a failing example -> the smallest that still fails by the same ``sign``, and how often it does

The file is written and played by ``meshlab.play``.
"""
