"""``python -m meshlab``: the command, where no script was installed."""

from meshlab.cli import main

main()
