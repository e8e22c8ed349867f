"""One command of the tool with its operations counted while it runs; for time_to_quality.py.

    python benchmarks/counted.py RECORD.json seed MODEL --run DIR ...

Works with every revision of the package (that on PYTHONPATH): nothing of it is imported here. The
record holds samples (time, CPU seconds, float32 operations, float64 operations), the first of them
from when the command began.
"""

import json
import runpy
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

SAMPLE_SECONDS = 0.02


def main() -> None:
    from operation_counter import OperationCounter

    record, sys.argv = Path(sys.argv[1]), ["globe-stream", *sys.argv[2:]]
    counter, ended, begin = OperationCounter(), threading.Event(), time.time()
    samples = [(begin, time.process_time(), 0.0, 0.0)]

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append((time.time(), time.process_time(), counter.single, counter.double))

    watching = threading.Thread(target=sample, daemon=True)
    watching.start()
    code = 1
    try:
        with counter:
            runpy.run_module("globe_stream", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    ended.set()
    watching.join()
    samples.append((time.time(), time.process_time(), counter.single, counter.double))
    record.write_text(json.dumps(samples))
    sys.exit(code)


if __name__ == "__main__":
    main()
