"""Start of the container: make the warmed caches usable for any user and on a read-only root, then run qsmflow.

numba refuses, and matplotlib ignores, a cache that it cannot write to. Where the image's caches cannot be written
(``--read-only``, Apptainer), both get a private copy that goes when the run ends.
"""

import os
import shutil
import sys
import tempfile

CACHES = {"NUMBA_CACHE_DIR": "/opt/cache/numba", "MPLCONFIGDIR": "/opt/cache/matplotlib"}


def main() -> int:
    """Run the command line with usable caches; returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="qsmflow-") as folder:
        for variable, cache in CACHES.items():
            if not os.access(cache, os.W_OK):
                cache = shutil.copytree(cache, os.path.join(folder, os.path.basename(cache)))
            os.environ[variable] = cache
        if not os.access(os.path.expanduser("~"), os.W_OK):
            os.environ["HOME"] = folder
        from qsmflow.cli.run import main as run  # reads the environment when imported

        return run()


if __name__ == "__main__":
    sys.exit(main())
