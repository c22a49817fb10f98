"""Files to arrays and back: Nipype interfaces, one module per stage."""

import os

# Nipype looks for a newer version on the net when its first interface is made, unless it is told not to.
os.environ["NO_ET"] = "1"
