import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ohem_caffe_port.memory import cache_sized

PROGRAM = textwrap.dedent("""
    import re, sys
    from pathlib import Path
    from ohem_caffe_port.memory import keep_freed_memory

    def resident():
        return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    import numpy
    before = resident()
    done = sys.argv[1] == "keep" and keep_freed_memory()
    blob = numpy.ones(8 << 20)
    del blob
    print(done, (resident() - before) >> 20)
""")


@pytest.mark.skipif(sys.platform != "linux" or not Path("/proc/self/status").is_file(), reason="for Linux")
def test_freed_memory_stays():
    def run(how):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True)
        kept, mebibytes = done.stdout.split()
        return kept == "True", int(mebibytes)

    kept, mebibytes = run("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert mebibytes >= 60, "of 64"
    assert run("leave")[1] < 10


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_are_the_whole(axis):
    blob = torch.rand(7, 50)
    parts = [blob.movedim(axis, 0)[part] for part in cache_sized(blob, axis, floats=60)]
    assert torch.equal(torch.cat(parts), blob.movedim(axis, 0))
    assert len(parts) > 3
    assert all(part.numel() <= 60 or len(part) == 1 for part in parts)
    assert cache_sized(blob, axis, floats=350) == cache_sized(torch.tensor(1.0)) == [...]
    assert cache_sized(blob.to("meta"), axis, floats=60) == [...]
