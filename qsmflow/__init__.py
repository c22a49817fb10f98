"""qsmflow: from multi-echo gradient-echo MRI to susceptibility, and on to the numbers of a study."""

import os
from importlib.metadata import version

# Nipype asks a server for its newest version when its first interface is made. A BIDS App does not phone home.
os.environ.setdefault("NO_ET", "1")
os.environ.setdefault("NIPYPE_NO_ET", "1")

__version__ = version("qsmflow")
