"""The end of a run of ours without its training: the figures and pictures of a validation split of any size.

measuring_probe.py JOB --told FILE -- CRAYON SETTINGS
"""

from __future__ import annotations

import argparse
import tempfile

from crayon.cli.flags import parse
from crayon.system.runfolder import RunFolder
from crayon.training import worker
from suite.tell import Teller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--told", required=True, help="file for JSON lines")
    known, rest = parser.parse_known_args()
    config = parse(known.job, [word for word in rest if word != "--"], known.job)
    tell = Teller(known.told)
    # As of a source without a test split: then the validation split is what everything is measured on.
    splits = worker.load_data(config)._replace(test=None)
    run = RunFolder(tempfile.mkdtemp(dir="."), "run")
    run.create()
    trainer = worker.build(config, splits, run)
    tell(len(splits.val))
    worker.conclude(trainer, "")
    tell.say(measured=len(splits.val))


if __name__ == "__main__":
    main()
