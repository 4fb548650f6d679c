"""Calls: what a name in one means, how it is planned, made and ended."""
