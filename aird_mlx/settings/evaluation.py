"""What an evaluation is asked to measure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import OutputError, PromptError, UsageError
from aird_mlx.evaluation import check_tasks_available
from aird_mlx.evaluation.attacks import PREFILL, SYSTEM_PROMPT
from aird_mlx.evaluation.judge_model import style_of
from aird_mlx.model import find_folder


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure; the names are the command line's.

    Attributes:
        model: ``"demo"``, a folder, a hub id, or a .gguf file.
        harmful, harmless, twins: files or hub data sets, each kept apart; all empty: the built-in test parts.
        column: where the prompts are in tables and JSON lines; None: a known column.
        limit: a seeded sample of so many prompts per set, and questions per file and task.
        attack: of `aird_mlx.evaluation.ATTACKS`, for harmful prompts; ``system`` for the other kinds too.
        system_prompt: the text, or a file that holds it.
        suffixes: file of suffixes, one a line.
        against: an earlier result, or the folder it lies in, to compare the same prompts with.
        window, windows: tokens per window of ``text``, and how many windows at most.
        dense: model whose next-token distributions ``text`` is compared with; MLX only.
        tasks: of lm-eval.
        refusals: whether prompts are asked at all.
        max_new_tokens: longer answers are cut; None: 512, or what the context leaves.
        out: file for the result. save_answers: JSON lines with the texts of prompts and answers.
    """

    model: str
    harmful: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    column: str | None = None
    limit: int | None = None
    seed: int = 0
    attack: tuple[str, ...] = ("vanilla",)
    system_prompt: str = SYSTEM_PROMPT
    suffixes: Path | None = None
    samples: int = 5
    prefill: str = PREFILL
    judge_model: str | None = None
    judge_style: str | None = None
    against: Path | None = None
    text: Path | None = None
    window: int = 512
    windows: int | None = None
    dense: str | None = None
    multiple_choice: tuple[Path, ...] = ()
    tasks: tuple[str, ...] = ()
    refusals: bool = True
    max_new_tokens: int | None = None
    batch_size: int = 64
    out: Path | None = None
    save_answers: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp runs it instead of MLX."""
        return self.model.lower().endswith(".gguf")


def check_evaluation(settings: EvaluationSettings) -> None:
    """Refuse what cannot be done, before a model is loaded.

    Raises:
        UsageError: options that do not go together.
        OutputError: a file to write is there already.
        ModelError: the dense or the judge model is not there. DependencyError: lm-eval is not.
    """
    if settings.is_gguf and (settings.dense or settings.tasks):
        word = "--dense" if settings.dense else "--tasks"
        raise UsageError(
            f"eval: {word} with the file {settings.model}; a model in MLX is needed for it. Leave it out, or evaluate "
            "the folder the file was exported from."
        )
    if settings.dense is not None and settings.text is None:
        raise UsageError("eval: --dense without --text; a text to compare on is needed. Give --text FILE.")
    if settings.window < 2:
        raise UsageError(f"eval: the window is {settings.window} tokens; at least 2 are needed. Use --window 512.")
    if not (settings.refusals or settings.text or settings.multiple_choice or settings.tasks):
        raise UsageError(
            "eval: nothing to measure; prompts, --text, --multiple-choice or --tasks are needed. Give one."
        )
    files = [path.absolute() for path in (settings.out, settings.save_answers) if path is not None]
    if len(set(files)) < len(files):
        raise UsageError(
            f"eval: --out and --save-answers are both {settings.out}; two files are needed. Choose another name."
        )
    for path in files:
        if path.exists():
            raise OutputError(f"output: {path} exists already; a new file is needed. Choose another name.")
    if settings.tasks:
        check_tasks_available()
    if settings.judge_model is not None:
        style_of(settings.judge_model, settings.judge_style)
        find_folder(settings.judge_model)
    if settings.dense is not None:
        find_folder(settings.dense)


def read_system_prompt(given: str) -> str:
    """The text itself, or what is in the file of that name; a word that ends as file names do is meant as one.

    Raises:
        PromptError: the file cannot be read, or there is no text.
    """
    try:
        is_name = Path(given).is_dir() or re.fullmatch(r"\S+\.(txt|md|jinja|prompt)", given)
        text = Path(given).read_text(encoding="utf-8-sig") if Path(given).is_file() else given
        if is_name and text == given:
            raise PromptError(
                f"system prompt: there is no file {given}; one, or the text itself, is needed. Check the path."
            )
    except UnicodeDecodeError as error:
        raise PromptError(f"system prompt: {given} is not UTF-8 ({error}); text is needed. Check the file.") from error
    except OSError:  # a text too long for a file's name
        text = given
    if not text.strip():
        raise PromptError("system prompt: it is empty; some text is needed. Leave the option out for the default.")
    return text.strip()
