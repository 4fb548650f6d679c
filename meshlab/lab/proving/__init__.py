"""Seeing calls and proving things of them: captures, the matrix, ``check``, evidence."""
