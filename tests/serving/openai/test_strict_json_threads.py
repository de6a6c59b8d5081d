"""Bodies are parsed in several threads, whose first ones may meet a type that nobody has used before."""

import subprocess
import sys

PROGRAM = """
import sys, threading
import msgspec
from splitrank.serving.openai.strict_json import convert

sys.setswitchinterval(1e-6)
wrong = []
for _ in range(400):
    inner = [msgspec.defstruct(f"Inner{i}", [(f"f{j}", int | None, None) for j in range(6)]) for i in range(6)]
    body = msgspec.defstruct("Body", [(f"f{i}", inner[i] | None, None) for i in range(6)])
    raw, all_here = {f"f{i}": {"f1": i} for i in range(6)}, threading.Barrier(4)

    def parse():
        all_here.wait()
        found = convert(raw, body)
        if [getattr(found, f"f{i}").f1 for i in range(6)] != [*range(6)]:
            wrong.append(found)

    threads = [threading.Thread(target=parse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("wrong:", len(wrong))
"""


def test_threads_that_meet_a_type_first_at_the_same_time_all_parse_it() -> None:
    """Without the lock the process dies of SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrong: 0\n", "")
