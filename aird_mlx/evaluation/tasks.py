"""Tasks of lm-evaluation-harness, run through mlx-lm's own wrapper for it; lm-eval is an optional package.

Prompts are lm-eval's, without chat template and without examples (zero-shot), as compression papers report them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from aird_mlx.errors import AirdError, DependencyError, UsageError
from aird_mlx.report import TaskScore


def check_tasks_available() -> None:
    """Raises DependencyError when lm-eval is not installed."""
    try:
        import_module("lm_eval.tasks")
        import_module("mlx_lm.evaluate")
    except ImportError as error:
        raise DependencyError(
            f"tasks: the package lm-eval cannot be imported ({error}); it brings the tasks. "
            "Run `pip install 'aird-mlx[eval]'`."
        ) from error


def run_tasks(
    folder: Path, tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 8, seed: int = 0
) -> list[TaskScore]:
    """Run lm-eval tasks (``boolq``, ``hellaswag``, ..., or a .yaml file of your own) on a model folder.

    Args:
        folder: a model that ``mlx_lm.load`` reads.
        tasks: names as lm-eval knows them.
        limit: first so many questions of each task.
        batch_size: questions scored side by side.
        seed: of lm-eval's own draws.

    Returns:
        Every metric of every task.

    Raises:
        DependencyError: lm-eval is not installed.
        UsageError: lm-eval does not know a task.
        AirdError: a task's data cannot be loaded.
    """
    check_tasks_available()
    known = import_module("lm_eval.tasks").TaskManager().match_tasks(list(tasks))
    unknown = [task for task in tasks if task not in known and not Path(task).is_file()]
    if unknown:
        raise UsageError(f"tasks: lm-eval knows no {unknown[0]!r}; a task's name is needed. See `lm_eval ls tasks`.")
    model = import_module("mlx_lm.evaluate").MLXLM(str(folder), batch_size=batch_size, use_chat_template=False)
    seeds = {f"{name}_random_seed": seed for name in ("numpy", "torch", "fewshot")}
    try:
        found = import_module("lm_eval").simple_evaluate(
            model, tasks=list(tasks), limit=limit, num_fewshot=None, random_seed=seed, **seeds
        )
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AirdError(
            f"tasks: {', '.join(tasks)} cannot be run ({reason}); the tasks' data, downloaded or in the cache, are "
            "needed. Go online, or leave --tasks out."
        ) from error
    scores = []
    for task, metrics in found["results"].items():
        n = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in metrics.items():
            name, _, filtered = key.partition(",")
            if filtered and not name.endswith("_stderr") and isinstance(value, (int, float)):
                spread = metrics.get(f"{name}_stderr,{filtered}")  # "N/A" where lm-eval has none
                is_number = isinstance(spread, (int, float))
                scores.append(TaskScore(task, name, float(value), float(spread) if is_number else None, n))
    return scores
