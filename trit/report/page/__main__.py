"""A page on a record or a study, in one file that needs no network: python -m trit.report.page FOLDER [--run RUN_FOLDER]

FOLDER is a record's, also one of several seeds, or that of a study's results (runs/<study>). Nothing in it is run or believed: the page
shows what its files say, and says what it leaves out and why. The last line printed is the page's path.
"""

import argparse
import sys
from pathlib import Path

from trit.data.files import atomic_write
from trit.report.page.known import Facts
from trit.report.page.pictures import record_pictures, study_pictures
from trit.report.page.record import record_page
from trit.report.page.study import is_study, read_results, study_page

MOST_PAGE = 3_000_000


def make_page(folder, run=None, data=None, study=None, pictures=None):
    """(text of the page of a folder, [picture written], [line on what is left out]). ValueError where it is neither record nor study."""
    folder = Path(folder)
    for place in filter(None, (folder, run and Path(run))):
        if not place.is_dir():
            raise ValueError(f"{place} is no folder; give a record's, such as records/<track>/<date>_<name>, or a study's results")
    if is_study(folder):
        found = read_results(folder, study)
        return study_page(found), study_pictures(found, pictures) if pictures else [], [found.words] if found.words else []
    known = Facts(folder, run, data)
    made = record_pictures(known, pictures) if pictures else []
    return record_page(known), made, [f"left out: {what}: {reason}" for what, reason in known.faults.items()]


def main(arguments=None):
    """Command line of this module: writes the page, exit 1 with one line where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m trit.report.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of a record or of a study's results")
    parser.add_argument("--run", help="folder of the training run: finer curves, churn, and the weights before they were rounded")
    parser.add_argument("--data", help="folder of the shards, for the engram; by default the one the record names")
    parser.add_argument("--study", help="the study's file, where it is not among its results")
    parser.add_argument("--out", default="report.html")
    parser.add_argument("--pictures", metavar="FOLDER", help="write the main charts as PNG files there")
    options = parser.parse_args(arguments)
    try:
        text, made, remarks = make_page(options.folder, options.run, options.data, options.study, options.pictures)
        data = text.encode("utf-8")
        if len(data) > MOST_PAGE:
            raise ValueError(f"the page would take {len(data):,} bytes, over {MOST_PAGE:,}: the folder holds more than a record does")
        atomic_write(options.out, data)
    except ImportError as fault:
        sys.exit(f"error: {fault.name} is not installed: pip install {fault.name}")
    except (ValueError, OSError) as fault:
        sys.exit(f"error: {' '.join(str(fault).split())}")
    for line in remarks:
        print(line, file=sys.stderr)
    for path in [*made, options.out]:
        print(path)


if __name__ == "__main__":
    main()
