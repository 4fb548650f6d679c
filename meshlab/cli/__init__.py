"""The command ``meshlab``. It reads arguments, calls the lab, prints, and picks the exit code; nothing is decided here.

    0 all held  1 a check failed  2 bad input  3 cannot run here  4 cannot tell  5 nothing to run  130 interrupted

What was asked for goes to stdout, everything else to stderr. Heavy modules are imported by the command that needs them.
However the printing ends (a reader that is gone, a full disk), the exit code is the command's own.

    running   check, bundle, replay     group     errors become exit codes
    fuzzing   fuzz                      options   arguments that several commands take
    files     validate, fmt, repro      output    printing, and streams that do not take it
    about     doctor, impls, version
"""

from __future__ import annotations

import click

from meshlab.cli.about import doctor, impls, version
from meshlab.cli.files import fmt, repro, validate
from meshlab.cli.fuzzing import fuzz
from meshlab.cli.group import Commands
from meshlab.cli.running import bundle, check, replay


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A TOPOLOGY is a file, or the name of one that comes with meshlab. Begin with: meshlab check quickstart",
)
def main() -> None:
    """A lab that builds a service mesh from network namespaces and proves what it does from packets."""


for _command in (check, bundle, fuzz, replay, fmt, repro, validate, doctor, impls, version):
    main.add_command(_command)
