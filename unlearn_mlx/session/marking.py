"""Marking a reply of a chat as a leak, for every face: kept in the run, which a shipped adapter gets then."""

import time

from unlearn_mlx.inference.asking import Mode
from unlearn_mlx.mending.folder import open_marks
from unlearn_mlx.mending.marks import Mark, keep_mark
from unlearn_mlx.runs.adapter_files import adapter_sha256
from unlearn_mlx.runs.commands import shell_word
from unlearn_mlx.runs.records import ChatMessage
from unlearn_mlx.session.catalog import Entry
from unlearn_mlx.session.conversation import Conversation, Turn, leak_in
from unlearn_mlx.session.shipped import made_of_shipped, run_to_mend


def toggle_mark(entry: Entry, conversation: Conversation, turn: Turn, mode: Mode, way: str = "") -> str:
    """Mark a reply as a leak, or take the mark back. Returns what was done and how to go on, in words.

    ``way`` says how a face mends; without one it is the command.

    Raises:
        UserError: where it cannot be kept; the reply is as it was then.
    """
    reply = turn.replies[mode]
    run = run_to_mend(entry)
    told = [ChatMessage.model_validate(message) for message in conversation.told(mode, turn)[:-1]]
    mark = Mark(
        question=turn.question,
        answer=reply.text.strip(),
        marked=not reply.is_marked,
        mode=mode,
        strength=turn.manner.strength,
        temperature=turn.manner.temperature,
        time=round(time.time(), 3),
        adapter=adapter_sha256(run.file("adapter")),
        context=told,
    )
    keep_mark(run.path, mark)
    reply.is_marked = mark.marked
    if not mark.marked:
        return f"The mark is taken back, in {run.path}."
    leak = leak_in(conversation.topic, conversation.asked(turn), reply.text)
    why = f" ({leak.reason})" if leak else ""
    if not mark.can_be_mended:
        return (
            f"Marked as a leak{why}, in {run.path}; only what the adapter says at strength 1 can be mended."
        )
    way = way or f"Mend it with 'unlearn mend {shell_word(run.path)}'."
    return f"Marked as a leak{why}, in {run.path}. {way}"


def marks_to_mend(entry: Entry) -> int:
    """How many marked answers wait to be mended, for an entry or the run that was made of it.

    Raises:
        UserError: where its files cannot be read.
    """
    run = entry.run or (made_of_shipped(entry) if entry.is_shipped else None)
    return len(open_marks(run)) if run else 0
