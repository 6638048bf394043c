"""Whether the package, given a record's configuration, writes the record's counted file again. Input: an `Entry`; output: a `Check`."""

from trit.bundle.bundle import ALL_CODECS, QUICK_CODECS, bundle
from trit.bundle.mixing import decoder_bytes
from trit.bundle.modules import DialectError
from trit.config_load import from_dict
from trit.library import LIBRARIES
from trit.proof.checks import check, unknown
from trit.report.record import package_sha256

BUILDS = ((True, QUICK_CODECS, "shaken, quick start"), (True, ALL_CODECS, "shaken"), (False, QUICK_CODECS, "whole"))


def same_build(entry):
    """The counted file is what this package makes of config.json, byte for byte, shaken or not.

    Another version of the package makes another file, which proves nothing: then the verdict is unknown.
    """
    name = "rebuild is identical"
    library = entry.submission.get("library", "torch")  # older records do not name it
    if library not in LIBRARIES:
        return unknown(name, f"submission.json names an array library that this version does not know: {library!r}")
    made_by, own = entry.submission.get("versions", {}).get("trit", "an unnamed version"), package_sha256()
    try:
        config = from_dict(entry.config)
        mixed = bool(decoder_bytes(entry.program))  # only a build with all codecs can be
        for shake, codecs, how in (build for build in BUILDS if ("mixing" in build[1]) == mixed):
            built = bundle(config, library=library, shake=shake, codecs=codecs, remember=False)
            if built.wrapped == entry.program:
                return check(name, True, f"{how}, sha256 {built.sha256}")
    except (ValueError, KeyError, DialectError) as fault:
        return unknown(name, f"this version of the package does not know the record's configuration: {fault}")
    if made_by == own:
        return check(
            name, False, f"package {own} made the record and now makes another file: the counted file was edited after it was built"
        )
    return unknown(
        name, f"made by package {made_by}, this one is {own}; rebuild with that version. The other checks judge the file as it is"
    )
