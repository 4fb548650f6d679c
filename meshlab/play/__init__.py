"""To play a topology file: its steps, bug files, and a test that does as the file does.

files, bugfile    a file as it is opened, and as it is written
moments           each call of ``spec.steps``, with the policies in effect at its time
bench, replay     labs, one after another, and the runs of a file on them
as_check          the same, told as ``check`` tells a matrix
repro             a pytest file from it
"""
