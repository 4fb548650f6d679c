"""A running lab: ``open_lab`` builds one from a topology and closes it again."""

from meshlab.lab.lab import Lab, open_lab
from meshlab.lab.pod import PodHandle

__all__ = ["Lab", "PodHandle", "open_lab"]
