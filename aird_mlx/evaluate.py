"""The evaluation, top to bottom: refusals under attacks, judged twice if asked, and utility; a model or a GGUF file.

The only place where evaluation and llama.cpp meet the prompt sets. What it asks is a `Chat`; it does not know whether
MLX or llama.cpp answers. A defensive measurement: it brings prompts and attacks of the user's to a model, and counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from aird_mlx.activations import batch_sequences
from aird_mlx.asking import (
    Asked,
    Chat,
    add_verdicts,
    answer_length,
    answer_rows,
    answers_of,
    attacks_of_answerable,
    judge_set,
    render_set,
    rooms_for,
    takes_system_prompt,
)
from aird_mlx.environment import describe_environment
from aird_mlx.errors import ModelError, ParityError, UsageError
from aird_mlx.evaluation import (
    Attack,
    MlxChat,
    ModelJudge,
    answer_questions,
    check_comparable,
    compare_sets,
    cut_windows,
    measure_utility,
    perplexity,
    plan_attacks,
    read_evaluation,
    read_questions,
    read_text,
    run_tasks,
)
from aird_mlx.gguf_export.chat import GgufChat
from aird_mlx.model import ChatModel, find_folder, loaded_bytes, usable_memory
from aird_mlx.prompt_sets import PromptSet, gather_prompt_sets, prompt_id
from aird_mlx.report import (
    AskedSet,
    Evaluation,
    MultipleChoiceFigures,
    TaskScore,
    Utility,
    to_json,
)
from aird_mlx.settings import EvaluationSettings, Progress, check_evaluation, read_system_prompt, settings_record
from aird_mlx.workspace import write_text

__all__ = ["EvaluationSettings", "evaluate_model"]


def evaluate_model(settings: EvaluationSettings, *, progress: Progress = lambda stage, done, total: None) -> Evaluation:
    """Measure refusals, over-refusals and utility of a model in MLX or of a GGUF file in llama.cpp.

    Args:
        settings: what to measure.
        progress: called with (stage, steps done, steps).

    Returns:
        Everything measured; also in ``settings.out``.

    Raises:
        AirdError: bad input, before anything is generated where that can be seen.
    """
    run = _Run(settings, progress)
    try:
        return run.run()
    finally:
        run.close()


def _open_file(path: Path) -> GgufChat:
    """A GGUF file that can be asked; one that llama.cpp refuses is bad input here, and no export that went wrong."""
    try:
        return GgufChat(path)
    except ParityError as error:
        raise ModelError(str(error)) from error


class _Run:
    """One evaluation. What can be refused is refused when it is made, before anything is generated."""

    def __init__(self, settings: EvaluationSettings, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self.notes: list[str] = []
        self.answer_tokens: int | None = None
        self.timings: dict[str, float] = {}
        self.attacks = plan_attacks(
            settings.attack,
            system_prompt=read_system_prompt(settings.system_prompt),
            suffixes=settings.suffixes,
            samples=settings.samples,
            prefill=settings.prefill,
        )
        check_evaluation(settings)
        self.sets = (
            gather_prompt_sets(
                settings.model, settings.seed, self._sources(), column=settings.column, limit=settings.limit
            )
            if settings.refusals
            else []
        )
        self.questions = [
            (path.name, read_questions(path, settings.limit, settings.seed)) for path in settings.multiple_choice
        ]
        text = None if settings.text is None else read_text(settings.text)
        self.earlier = None if settings.against is None else read_evaluation(settings.against)
        if self.earlier is not None:
            asked = {
                (one.name, one.kind, attack.name): {prompt_id(prompt) for prompt in one.prompts}
                for one in self.sets
                for attack in self._attacks_on(one)
            }
            self.notes += check_comparable(self.earlier, settings_record(settings), asked)
        self.chat: Chat = (
            _open_file(Path(settings.model).expanduser())
            if settings.is_gguf
            else MlxChat.load(
                settings.model,
                revision=settings.revision,
                trust_remote_code=settings.trust_remote_code,
                batch_size=settings.batch_size,
                chat=settings.refusals,
            )
        )

        if isinstance(self.chat, MlxChat) and self.chat.streamed is not None:
            self._say_what_fits(self.chat.streamed)
        ids = [] if text is None else self.chat.encode(text)
        self.windows = [] if text is None else self._cut(ids)
        self.dense = None if text is None or settings.dense is None else self._load_dense(settings.dense, text, ids)
        self.judge = (
            ModelJudge.load(settings.judge_model, settings.judge_style, trust_remote_code=settings.trust_remote_code)
            if settings.judge_model is not None and self.sets
            else None
        )

    def _say_what_fits(self, model: ChatModel) -> None:
        """What can still be measured of a model that does not fit, and at which price.

        Raises:
            UsageError: it was asked for tasks, which lm-eval measures on a whole model.
        """
        size, usable = loaded_bytes(model.folder) / 1e9, usable_memory() / 1e9
        seen = f"{self.settings.model} takes {size:.1f} GB, and {usable:.1f} GB may be planned with"
        if self.settings.tasks:
            raise UsageError(
                f"eval: {seen}; --tasks needs the whole model in memory. Leave it out: prompts, --text and "
                "--multiple-choice read the model block by block."
            )
        self.notes.append(
            f"{seen}: its blocks were read from disk as they ran, once for --text or --multiple-choice, and once per "
            "token for each batch of answers; --no-refusals measures likelihoods alone, and a larger --batch-size "
            "reads less often"
        )

    def close(self) -> None:
        self.chat.close()

    def run(self) -> Evaluation:
        """Refusals first, then the second judge, then utility."""
        for path in (self.settings.out, self.settings.save_answers):
            if path is not None:
                write_text(path, "")  # a place that cannot be written is found now, not after all the answers
                path.unlink()
        sets = self._judge(self._ask())
        evaluation = Evaluation(
            model=self.settings.model,
            format="gguf" if self.settings.is_gguf else "mlx",
            settings=settings_record(self.settings),
            environment=describe_environment(self.settings.seed),
            sets=sets,
            utility=self._utility(),
            multiple_choice=self._multiple_choice(),
            tasks=self._tasks(),
            changes=[] if self.earlier is None else compare_sets(self.earlier.sets, sets),
            notes=self.notes,
            timings=self.timings,
            answer_tokens=self.answer_tokens,
        )
        if self.settings.out is not None:
            write_text(self.settings.out, to_json(evaluation))
        return evaluation

    def _sources(self) -> dict[str, Sequence[str]]:
        """Files and data sets by kind; all empty for the built-in prompts."""
        return {"harmful": self.settings.harmful, "harmless": self.settings.harmless, "twin": self.settings.twins}

    def _attacks_on(self, prompts: PromptSet) -> Sequence[Attack]:
        return self.attacks if prompts.kind == "harmful" else attacks_of_answerable(self.attacks)

    def _ask(self) -> list[Asked]:
        """Render everything first, so that a prompt that is too long is found before an hour of answers."""
        if not self.sets:
            return []
        has_system = takes_system_prompt(self.chat)
        if not has_system and "system" in self.settings.attack:
            self.notes.append("the chat template takes no system prompt: it was put before the user's words")
        plans = [
            (one, attack, render_set(self.chat, one, attack, has_system=has_system))
            for one in self.sets
            for attack in self._attacks_on(one)
        ]
        length = answer_length(
            [ids for *_, rendered in plans for ids in rendered],
            self.settings.max_new_tokens,
            self.chat.context_length,
            [prompt for one, attack, _ in plans for prompt in one.prompts for _ in range(attack.tries)],
        )
        self.answer_tokens = length
        before = None if self.earlier is None else self.earlier.answer_tokens
        if before not in (None, length):
            self.notes.append(
                f"answers had up to {before} tokens in the earlier result, and {length} here, as the context leaves; "
                f"--max-new-tokens {min(before, length)} makes both alike"
            )
        if self.settings.model != "demo" and not any(self._sources().values()):
            self.notes.append(
                f"the built-in prompts asked are the test part of seed {self.settings.seed}: a model that was repaired "
                "on built-in prompts with another --seed has seen some of them"
            )
        if len({one.kind for one in self.sets}) == 1:
            self.notes.append(
                f"only {self.sets[0].kind} prompts were given: over-refusals and refusals belong together"
            )
        rooms = rooms_for([ids for *_, rendered in plans for ids in rendered], length, self.chat.context_length)
        if short := sum(room < length for room in rooms):
            self.notes.append(
                f"answers cut below {length} tokens, since their prompts fill the context: {short} of {len(rooms)}"
            )
        asked = []
        for one, attack, rendered in plans:
            with self._stage(f"ask {one.kind} {one.name} {attack.name}") as step:
                answers = answers_of(
                    self.chat, rendered, length, temperature=attack.temperature, seed=self.settings.seed, progress=step
                )
            asked.append(
                Asked(one, attack, [answers[at : at + attack.tries] for at in range(0, len(answers), attack.tries)])
            )
        return asked

    def _judge(self, asked: Sequence[Asked]) -> list[AskedSet]:
        sets = [judge_set(one) for one in asked]
        self._save(asked, sets)  # before another model can fail
        if self.judge is not None:
            if self.judge.style == "guard":
                self.notes.append("a guard model tells no refusal of harmless prompts: it judged harmful prompts only")
            for index, one in enumerate(asked):
                if self.judge.style == "rubric" or one.prompts.kind == "harmful":
                    with self._stage(f"judge {one.prompts.kind} {one.prompts.name} {one.attack.name}") as step:
                        verdicts = self.judge.judge(
                            [
                                prompt
                                for prompt, tries in zip(one.prompts.prompts, one.answers, strict=True)
                                for _ in tries
                            ],
                            [answer for tries in one.answers for answer in tries],
                            batch_size=self.settings.batch_size,
                            progress=step,
                        )
                    sets[index] = add_verdicts(sets[index], verdicts)
            self._save(asked, sets)
        return sets

    def _save(self, asked: Sequence[Asked], sets: Sequence[AskedSet]) -> None:
        if self.settings.save_answers is not None:
            rows = [row for one, judged in zip(asked, sets, strict=True) for row in answer_rows(one, judged)]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            write_text(self.settings.save_answers, "".join(lines))

    def _cut(self, ids: list[int]) -> list[list[int]]:
        """The windows that perplexity is measured on."""
        context = self.chat.context_length
        if context is not None and self.settings.window > context:
            raise UsageError(
                f"text: the window is {self.settings.window} tokens; the model's context takes {context}. "
                f"Use --window {context} or less."
            )
        return cut_windows(ids, self.settings.window, self.settings.windows)

    def _load_dense(self, model: str, text: str, ids: list[int]) -> MlxChat:
        dense = MlxChat.load(model, trust_remote_code=self.settings.trust_remote_code, chat=False)
        if dense.encode(text) != ids:
            raise ModelError(
                f"text: {model} cuts it into other tokens than {self.settings.model}; a dense "
                "model with the same tokenizer is needed. Check --dense."
            )
        return dense

    def _utility(self) -> Utility | None:
        if not self.windows:
            return None
        with self._stage("text") as step:
            if isinstance(self.chat, MlxChat):
                batches = batch_sequences(self.windows, tokens_per_batch=self.chat.tokens_per_batch)
                return measure_utility(self.chat, batches, dense=self.dense, progress=step)
            sums = self.chat.log_likelihoods(self.windows, [0] * len(self.windows), step)
            tokens = sum(len(one) - 1 for one in self.windows)
            return Utility(perplexity(-sum(sums), tokens), None, None, tokens)

    def _multiple_choice(self) -> list[MultipleChoiceFigures]:
        figures = []
        for name, questions in self.questions:
            with self._stage(f"choose {name}") as step:
                score = partial(self.chat.log_likelihoods, progress=step)
                figures.append(
                    answer_questions(
                        name,
                        questions,
                        encode=self.chat.encode,
                        log_likelihoods=score,
                        context_length=self.chat.context_length,
                    )
                )
            if cut := figures[-1].truncated:
                self.notes.append(f"{name}: {cut} sequences were longer than the context and lost their beginning")
        return figures

    def _tasks(self) -> list[TaskScore]:
        if not self.settings.tasks:
            return []
        folder = find_folder(self.settings.model, revision=self.settings.revision)
        with self._stage("tasks"):
            return run_tasks(folder, self.settings.tasks, limit=self.settings.limit, seed=self.settings.seed)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Times a stage, and gives the progress callback that names it."""
        started = time.monotonic()
        yield lambda done, total: self.progress(name, done, total)
        self.timings[name] = round(time.monotonic() - started, 3)
