"""Stand-ins for sbatch, squeue and scancel: jobs run in the background on this machine, dependencies are kept.

A job is a folder FAKE_SLURM/<number> with its arguments, its process and, when it is over, its exit code.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def sbatch(words):
    folder = STATE / str(1 + len(list(STATE.iterdir())))
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(words))
    process = subprocess.Popen(
        [sys.executable, __file__, "run", folder], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (folder / "process").write_text(str(process.pid))
    print(f"Submitted batch job {folder.name}")


def run(words):
    folder = Path(words[0])
    job = json.loads((folder / "job.json").read_text())
    needed = next((word.split(":")[1:] for word in job if word.startswith("--dependency=afterok")), [])
    while not all((STATE / number / "exit").exists() for number in needed):
        time.sleep(0.02)
    code = "never"
    if all((STATE / number / "exit").read_text() == "0" for number in needed):
        with open(job[job.index("-o") + 1], "a") as out, open(job[job.index("-e") + 1], "a") as err:
            code = subprocess.run(["bash", job[-1]], stdout=out, stderr=err, check=False).returncode
    (folder / "exit").write_text(str(code))


def squeue(words):
    for folder in STATE.iterdir():
        if not (folder / "exit").exists():
            job = json.loads((folder / "job.json").read_text())
            comment = next(word.partition("=")[2] for word in job if word.startswith("--comment"))
            print(f"{folder.name}|{comment}|{job[job.index('-J') + 1]}")


def scancel(words):
    for number in words:
        os.killpg(int((STATE / number / "process").read_text()), signal.SIGKILL)
        (STATE / number / "exit").write_text("cancelled")


if __name__ == "__main__":
    command, *words = [Path(sys.argv[0]).stem, *sys.argv[1:]]
    if command == "fake_slurm":
        command, *words = words
    {"sbatch": sbatch, "run": run, "squeue": squeue, "scancel": scancel}[command](words)
