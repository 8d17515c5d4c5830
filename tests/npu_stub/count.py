"""Count what the encoder's steps launch over the stub of CANN: ``python tests/npu_stub/count.py [ARGUMENT ...]``.

The arguments are those of inference.py.  Prints a line for each kind of step, with aclnn calls and estimated kernels.
"""

import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from npu_stub.build import environment
from npu_stub.kernels import kernels


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, out = Path(folder, "runs.json"), Path(folder, "out.json")
        runs.write_text(json.dumps([{"args": sys.argv[1:]}]))
        command = [sys.executable, Path(__file__).with_name("over_stub.py"), runs, out]
        subprocess.run(command, env=environment(), check=True)
        (run,) = json.loads(out.read_text())
    if run["code"]:
        sys.exit(run["stderr"])
    for phase, step in run["steps"].items():
        found = collections.Counter()
        for lines in step["operators"].values():
            for line, count in lines.items():
                if line.startswith("LAUNCH"):
                    found.update(calls=count, kernels=count * len(kernels(line)))
        if step["calls"]:
            print(f"{phase}: {found['calls'] / step['calls']:g} calls, {found['kernels'] / step['calls']:g} kernels")


if __name__ == "__main__":
    main()
