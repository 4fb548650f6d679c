"""What is seen of calls, and proven from it: captures, the matrix, ``check``, evidence."""
