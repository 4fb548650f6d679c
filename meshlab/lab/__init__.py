"""A running lab: ``open_lab`` builds one from a topology and closes it again."""

from meshlab.lab.lab import Lab
from meshlab.lab.lifetime import open_lab
from meshlab.lab.pod import PodHandle
from meshlab.lab.proving.capture import Capture
from meshlab.lab.settings import LabSettings, Settings

__all__ = ["Capture", "Lab", "LabSettings", "PodHandle", "Settings", "open_lab"]
