"""The stage of mending: paraphrases, guarded answers, a short training from the adapter as it is.

Every step leaves its files in the mend's folder, so that one that was cut off goes on where it stopped.
The run itself is touched last, and then at once: its adapter's weights are replaced by one rename.
"""

import shutil

from unlearn_mlx.evaluation.stage import every_probe
from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.mending.folder import RESULT, Mend, begin_mend
from unlearn_mlx.mending.paraphrases import paraphrases
from unlearn_mlx.mending.result import MendedQuestion, MendResult, ask_marked
from unlearn_mlx.mending.rows import (
    marked_questions,
    renew_rows,
    rows_of_run,
    telling_of,
    write_rows_of_mend,
)
from unlearn_mlx.runs.adapter_files import CONFIGURATION, WEIGHTS, adapter_sha256
from unlearn_mlx.runs.files import read_rows, write_atomically, write_json, write_rows
from unlearn_mlx.runs.records import BaseAnswer, Question, Stage, read_records
from unlearn_mlx.runs.run import RESULTS, Run, Work
from unlearn_mlx.sft.trainer import train
from unlearn_mlx.text.similarity import Nearness


def mend(model: ChatModel, work: Work) -> None:
    """Mend what is marked in the run, or go on with a mend that was cut off.

    Raises:
        UserError: where nothing is marked, or no guarded answer passed the filter.
        Cancelled: after what was finished is on disk.
    """
    run = work.run
    under_way = begin_mend(run)
    inner = Work(under_way, under_way.settings, work.is_cancelled, work.workers, work.memory_facts)
    probes = [probe.question for probe in every_probe(run)]
    if not under_way.stage_is_done("questions"):
        marked = marked_questions(under_way)
        every = [*marked, *paraphrases(model, inner, marked, probes)]
        write_rows(under_way.file("questions.jsonl"), [question.as_row() for question in every])
        under_way.mark("questions", "done")
    questions = read_records(under_way.file("questions.jsonl"), Question)
    if not under_way.stage_is_done("answers"):
        write_rows_of_mend(model, inner, under_way, questions, probes)
        under_way.mark("answers", "done")
    marked = [question for question in questions if question.kind == "marked"]
    rows = read_records(under_way.file("base_answers.jsonl"), BaseAnswer)
    base = {row.question_id: row.answer for row in rows}
    telling = telling_of(under_way, questions, base, rows_of_run(run), under_way.settings.similarity)
    before = ask_marked(model, inner, under_way.before, marked, telling, "before")
    if not under_way.stage_is_done("train"):
        train(model, inner, under_way.before)
        # The same LoRA as before, in the same words: weights alone are replaced in the run.
        shutil.copyfile(under_way.before / CONFIGURATION, under_way.file("adapter", CONFIGURATION))
        under_way.mark("train", "done", adapter=adapter_sha256(under_way.file("adapter")))
    after = ask_marked(model, inner, under_way.file("adapter"), marked, telling, "after")
    asked = Nearness(probes)
    result = MendResult(
        before=adapter_sha256(under_way.before),
        after=adapter_sha256(under_way.file("adapter")),
        questions=[
            MendedQuestion(
                question=question.question,
                context=question.context,
                before=before[question.id],
                after=after[question.id],
            )
            for question in marked
        ],
        paraphrases=len(questions) - len(marked),
        answers=sum(row["accepted"] for row in read_rows(under_way.file("answers.jsonl"))),
        near_probes=sum(asked.holds(question.question) for question in marked),
    )
    _finish(run, under_way, result)


def _finish(run: Run, mend: Mend, result: MendResult) -> None:
    """Put the mended adapter in its place. Done again after a kill, it ends the same."""
    write_atomically(run.file("adapter", WEIGHTS), mend.file("adapter", WEIGHTS).read_bytes())
    trained = {"state": "done", "adapter": adapter_sha256(run.file("adapter"))}
    put_stages(run, {"train": Stage.model_validate(trained)})
    for name in RESULTS:  # they are of the adapter that was replaced, and lie beside it
        run.file(name).unlink(missing_ok=True)
    write_json(mend.file(RESULT), result.as_row())
    renew_rows(run)
    for name in ("adapter", "journal", "checkpoints"):
        shutil.rmtree(mend.file(name), ignore_errors=True)


def put_stages(run: Run, stages: dict[str, Stage]) -> None:
    """Make these the states of the stages that depend on the adapter."""
    for name in ("train", "evaluate", "audit"):
        run.manifest.stages.pop(name, None)
    run.manifest.stages.update(stages)
    run.save_manifest()
