"""What is printed for people and scripts. It decides nothing: results come from ``lab`` and ``proofs``."""

from meshlab.report.listings import print_findings, print_implementations
from meshlab.report.terminal import print_report, summary

__all__ = ["print_findings", "print_implementations", "print_report", "summary"]
