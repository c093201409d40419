"""Answers -> verdicts.   in: an Examinee, samples of a task   out: Verdict of each, pass@k of all
who calls: runner.py

Read next: scorers.py and code.py (judges), examinee.py (who is asked).
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.common.errors import EvalError, SandboxError
from nanochat.evals.examinee import Asking, Examinee
from nanochat.evals.task import TIMEOUT, Judge, Judgement, Mode, Sample, Task, Verdict

if TYPE_CHECKING:
    from nanochat.common.sandbox.box import Sandbox

__all__ = ["judge_of", "judged", "pass_at", "pass_at_k"]


def judge_of(task: Task, mode: Mode, sandbox: "Sandbox | SandboxError | None") -> Judge | None:
    """The task's own, or for programs the sandbox.

    Raises: SandboxError where it cannot be used.
    """
    if not task.runs_code:
        return task.judge
    from nanochat.evals.code import CodeProblem, judge

    assert sandbox is not None, "a task that runs code without a sandbox"
    if isinstance(sandbox, SandboxError):
        raise sandbox

    def judge_program(sample: Sample, output: str) -> Judgement:
        problem = CodeProblem(
            prompt=str(sample.extra.get("prompt", "")),
            tests=str(sample.extra["tests"]),
            entry_point=str(sample.extra.get("entry_point", "")),
        )
        found = judge(sandbox, problem, output, compat=mode == "nanochat")
        said = "" if found.passed else f"{found.reason}: {found.detail}".rstrip(": ")
        return Judgement(float(found.passed), said, is_final=found.reason != TIMEOUT)

    return judge_program


def judged(
    examinee: Examinee, task: Task, samples: Sequence[Sample], asking: Asking
) -> Iterator[tuple[Sample, Verdict]]:
    """The samples with their verdicts, in the order in which they are answered."""
    if task.kind != "generative":
        verdicts = examinee.likelihoods(samples, task.kind, asking.mode)
        yield from zip(samples, verdicts, strict=True)
        return
    assert task.judge is not None, "a generative task without a judge"
    flags: defaultdict[str, set[str]] = defaultdict(set)
    asking = replace(asking, note=lambda sample_id, flag: flags[sample_id].add(flag))
    for index, outputs in examinee.answers(samples, asking):
        sample = samples[index]
        judgements = [task.judge(sample, output) for output in outputs]
        scores = tuple(judgement.score for judgement in judgements)
        score = sum(scores) / len(scores)
        if asking.mode == "nanochat":
            score = max(scores)  # any of them, as the reference counts
        worst = min(judgements, key=lambda judgement: judgement.score)
        if not all(judgement.is_final for judgement in judgements):
            flags[sample.sample_id].add(TIMEOUT)
        found = sorted(flags[sample.sample_id])
        yield (
            sample,
            Verdict(
                sample_id=sample.sample_id,
                score=score,
                output=outputs[0],
                explanation=worst.explanation,
                outputs=outputs if len(outputs) > 1 else (),
                scores=scores if len(scores) > 1 else (),
                details={"flags": found} if found else {},
            ),
        )


def pass_at(verdicts: Sequence[Verdict], count: int) -> dict[int, float]:
    """pass@1 and, by tens, up to as many answers as were written to each question."""
    if count == 1 or not all(verdict.scores for verdict in verdicts):
        return {}
    correct = [sum(score >= 1 for score in verdict.scores) for verdict in verdicts]
    wanted = sorted({1, *(k for k in (10, 100) if k <= count), count})
    return {k: sum(pass_at_k(count, each, k) for each in correct) / len(correct) for k in wanted}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """How likely one of k answers is right, from n of which c are; unbiased.

    Raises: EvalError unless 1 <= k <= n.
    Source: Chen et al., arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise EvalError(
            f"pass@{k} of {num_samples} answers, {num_correct} right: expected 1 <= k <= n"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
