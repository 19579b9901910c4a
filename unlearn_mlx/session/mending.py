"""A mend as every face shows it: what is to be done, and what came of it."""

from unlearn_mlx.errors import UserError
from unlearn_mlx.evaluation.schema import evaluation_of, read_metrics, shown_metrics, written
from unlearn_mlx.mending.folder import BEFORE, finished_mends, mends_of, open_marks, what_is_marked
from unlearn_mlx.mending.result import SAMPLES, has_its_adapter, last_result
from unlearn_mlx.runs.run import Run

LONGEST_SHOWN = 160  # characters of an answer in a line


def stages_of_mend(run: Run) -> list[str]:
    """What a worker is to do: mend what is marked, and evaluate again where the run was evaluated.

    Raises:
        UserError: where nothing is marked and nothing is left of an earlier mend.
    """
    run.finished_adapter()
    evaluated = ["evaluate"] if was_evaluated(run) else []
    if open_marks(run):
        return ["mend", *evaluated]
    # A mend that was cut off in the evaluation after it goes on there.
    if evaluated and evaluation_of(run.path) is None:
        return evaluated
    raise UserError(f"{run.path}: {what_is_marked(run)}")


def was_evaluated(run: Run) -> bool:
    """Whether there is an evaluation of its adapter, or of the one from before its last mend."""
    if evaluation_of(run.path) is not None:
        return True
    mends = mends_of(run)
    return bool(mends) and (mends[-1].before / "evaluation.json").exists()


def result_lines(run: Run) -> list[str]:
    """What the last mend changed: on the marked questions, and on the probes where they were asked.

    Raises:
        UserError: where the run was not mended.
    """
    result = last_result(run)
    lines = [
        f"{result.paraphrases} paraphrases, {result.answers} made-up answers; "
        f"of {SAMPLES} answers to each marked question leak, before -> after:"
    ]
    for question in result.questions:
        before, after = (sum(bool(each.leak) for each in said) for said in (question.before, question.after))
        lines.append(f"  {before} -> {after}  {question.question}")
        for name, said in (("before", question.before), ("after", question.after)):
            why = f" [leaks: {said[0].leak}]" if said[0].leak else ""
            lines.append(f"    {name + ':':8s}{' '.join(said[0].answer.split())[:LONGEST_SHOWN]}{why}")
    if result.near_probes:
        lines.append(
            f"  {result.near_probes} of them near a probe of the evaluation, which is not new to it any more"
        )
    return [*lines, *probe_lines(run)]


def last_mend(run: Run) -> str:
    """What the last mend did, in one line; empty where there was none, or its adapter is there no more.

    Raises:
        UserError: where its files are damaged.
    """
    finished = finished_mends(run)
    return mend_sentence(run) if finished and has_its_adapter(finished[-1]) else ""


def mend_sentence(run: Run) -> str:
    """What the last mend did to the marked questions, in one line.

    Raises:
        UserError: where the run was not mended.
    """
    result = last_result(run)
    (before, asked), (after, _) = result.leaks("before"), result.leaks("after")
    count = len(result.questions)
    marked = f"{count} marked question{'s' * (count != 1)}"
    return f"Mended: of {asked} answers to {marked} {before} leaked, now {after}."


def probe_lines(run: Run) -> list[str]:
    """The evaluation's measures of the adapter before and after; none where one of the two is missing."""
    mend = finished_mends(run)[-1]
    path = mend.file(BEFORE, "evaluation.json")
    now = evaluation_of(run.path)
    if now is None or not path.exists() or not has_its_adapter(mend):
        return []
    then = read_metrics(path)
    lines = [f"{'on the probes':62s} {'base':>6s} {'before':>7s} {'after':>7s}"]
    for metric in shown_metrics(now):
        if metric.key in then.adapter:
            values = (now.base[metric.key], then.adapter[metric.key], now.adapter[metric.key])
            base, before, after = (written(metric.key, value) for value in values)
            lines.append(f"{metric.name:62s} {base:>6s} {before:>7s} {after:>7s}")
    return lines
