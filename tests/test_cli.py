"""When the command started: what every reported wall time counts from."""

from __future__ import annotations

import subprocess
import sys
import time


def test_the_start_is_the_process_start_to_a_few_hundredths():
    code = "import time; time.sleep(0.3)\nfrom crayon.cli import command_start\nprint(command_start())"
    before = time.time()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    after = time.time()
    told = float(process.communicate()[0])
    assert before - 0.05 < told < after + 0.05
