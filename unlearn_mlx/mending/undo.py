"""Taking the last mend back: the adapter and its results are those of before, byte for byte."""

import shutil

from unlearn_mlx.errors import UserError
from unlearn_mlx.mending.folder import drop_unfinished, mends_of
from unlearn_mlx.mending.result import has_its_adapter
from unlearn_mlx.mending.rows import renew_rows
from unlearn_mlx.mending.stage import put_stages
from unlearn_mlx.runs.adapter_files import ADAPTER_FILES
from unlearn_mlx.runs.files import write_atomically
from unlearn_mlx.runs.records import read_manifest
from unlearn_mlx.runs.run import RESULTS, Run

OF_THE_ADAPTER = ("train", "evaluate", "audit")


def undo_mend(run: Run) -> str:
    """Take back a mend that was begun, else the last one that was finished. Returns what was done, in words.

    Its marks are open again.

    Raises:
        UserError: where there is none, or the adapter was made anew since.
    """
    mends = mends_of(run)
    if not mends:
        raise UserError(f"{run.path} was never mended: there is nothing to take back")
    mend = mends[-1]
    if not mend.is_finished and not mend.is_in_place:
        drop_unfinished(run)
        return "the mend that was cut off is gone; it had not touched the adapter"
    count = len(mend.marks())
    if mend.is_finished and not has_its_adapter(mend):
        raise UserError(
            f"{run.path}: its adapter was made anew since the last mend; the one from before it is kept in "
            f"{mend.before}"
        )
    for name in ADAPTER_FILES:
        write_atomically(run.file("adapter", name), (mend.before / name).read_bytes())
    for name in RESULTS:
        run.file(name).unlink(missing_ok=True)
        if (mend.before / name).exists():
            write_atomically(run.file(name), (mend.before / name).read_bytes())
    known = read_manifest(mend.before / "manifest.json").stages
    put_stages(run, {name: known[name] for name in OF_THE_ADAPTER if name in known})
    shutil.rmtree(mend.path)
    renew_rows(run)
    return f"the adapter is the one from before the mend of {count} marked answer{'s' * (count != 1)}"
