"""The options of the commands, each said once; their words are the library's words.

Where mlx-lm or llama.cpp has an option for a thing, ours has the same name. Only the shape of a value is
checked here (a number, a choice); what it means is checked by the library, which this module does not import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
SHARE = click.FloatRange(0, 1, max_open=True)

GGUF_TYPES = (
    *("f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "mxfp4", "nvfp4", "tq1_0", "tq2_0"),
    *("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "iq4_nl", "iq4_xs"),
)

MODEL_HELP = "Hub id or local folder, instead of the argument MODEL."


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Take the defaults of a command's options from a TOML table; what is said on the command line wins.

    Raises:
        click.BadParameter: the file cannot be read, is not TOML, or has a key or a value that is no option's.
    """
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise click.BadParameter(f"cannot read {path}: {reason}.", context, parameter) from error
    known = _config_keys(context.command)
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise click.BadParameter(
            f"{path} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}.",
            context,
            parameter,
        )
    context.default_map = {}
    for key, value in table.items():
        option = known[key]
        types, needed = _toml_types(option)
        values = value if option.multiple and isinstance(value, list) else [value]
        if not all(type(one) in types and one == one for one in values):  # nan is not itself
            raise click.BadParameter(f"{path} has {key} = {value!r}; {needed} is needed.", context, parameter)
        context.default_map[str(option.name)] = values if option.multiple else value
    return path


def _toml_types(option: click.Option) -> tuple[tuple[type, ...], str]:
    """What an option takes in TOML, and in words: click makes a text of anything, and a whole number of 4.5."""
    if option.is_flag:
        return (bool,), "true or false"
    if isinstance(option.type, click.types.FloatParamType):
        return (int, float), "a number"
    if isinstance(option.type, click.types.IntParamType):
        return (int,), "a whole number"
    return (str,), "a text, or a list of texts," if option.multiple else "a text"


def _config_keys(command: click.Command) -> dict[str, click.Option]:
    """Option words without their dashes, each with its option."""
    keys = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("config", "help"):
            for word in parameter.opts:
                if word.startswith("--"):
                    keys[word.removeprefix("--")] = parameter
    return keys


def choose_gguf_types(_context: click.Context, _parameter: click.Parameter, types: tuple[str, ...]) -> tuple[str, ...]:
    """The GGUF types to write, in the order given, each once; ``none`` stands alone and means no file.

    Raises:
        click.BadParameter: ``none`` beside another type.
    """
    chosen = tuple(dict.fromkeys(types))
    if "none" in chosen and len(chosen) > 1:
        raise click.BadParameter("'none' cannot be combined with another type.")
    return () if chosen == ("none",) else chosen


def choose_outtypes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """The types of a list with commas, each once.

    Raises:
        click.BadParameter: one is unknown.
    """
    chosen = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",")))
    for word in chosen:
        if word not in ("auto", *GGUF_TYPES):
            raise click.BadParameter(f"{word!r} is none of auto, {', '.join(GGUF_TYPES)}.", context, parameter)
    return chosen


def choose_model(context: click.Context, argument: str | None, option: str | None) -> str:
    """The model from the argument or from ``--model``.

    Raises:
        click.UsageError: there is none, or both are given and differ.
    """
    # A default from --config does not quarrel with the argument: the command line wins.
    from_config = context.get_parameter_source("model") is click.core.ParameterSource.DEFAULT_MAP
    if argument and option and argument != option and not from_config:
        raise click.UsageError(f"MODEL is {argument!r} and --model is {option!r}; give one of them.", context)
    model = argument or option
    if not model:
        raise click.UsageError("MODEL is missing: a hub id, a local folder, or `demo`.", context)
    return model


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator from many, shown by --help in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON and nothing else.")

config_option = click.option(
    "--config",
    type=FILE,
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="TOML table of these options; the command line wins.",
)
revision_option = click.option("--revision", help="Branch, tag or commit of a hub model.")
trust_option = click.option("--trust-remote-code", is_flag=True, help="Run Python code of the model and its tokenizer.")
model_options = with_options(
    click.argument("model_argument", metavar="MODEL", required=False),
    click.option("--model", "--hf-path", "model", metavar="MODEL", help=MODEL_HELP),
    revision_option,
    trust_option,
)
contrast_options = with_options(
    click.option("--harmful", type=FILE, metavar="FILE", help="Prompts to refuse: .txt, .jsonl or .csv."),
    click.option("--harmless", type=FILE, metavar="FILE", help="Prompts to answer."),
)
twins_option = click.option("--twins", type=FILE, metavar="FILE", help="Harmless prompts that look harmful.")
max_new_tokens_option = click.option(
    "--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer, in tokens."
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Prompts answered at a time.",
)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws.")

calibration_option = click.option(
    "--calibration", type=FILE, metavar="FILE", help="Text that pruning is calibrated on."
)


def pruning_options(*more: str) -> Callable[[Command], Command]:
    """How weights are removed; ``more`` are methods besides those that remove some."""
    return with_options(
        click.option("--sparsity", type=SHARE, default=0.5, show_default=True, help="Share of the weights to remove."),
        click.option(
            "--prune-method",
            type=click.Choice(["wanda", "sparsegpt", "magnitude", "random", *more]),
            default="wanda",
            show_default=True,
            help="How the weights to remove are chosen; random is a control.",
        ),
        click.option(
            "--pattern",
            metavar="unstructured|N:M",
            default="unstructured",
            show_default=True,
            help="N:M removes N of each M consecutive inputs; sparsity is then N/M.",
        ),
        click.option(
            "--scope",
            type=click.Choice(["row", "matrix"]),
            default="row",
            show_default=True,
            help="Where the lowest weights are looked for; sparsegpt: in blocks of 128 columns.",
        ),
        click.option(
            "--allocation",
            type=click.Choice(["uniform", "owl", "safety"]),
            default="uniform",
            show_default=True,
            help="Over blocks: all alike, by outliers, or by the refusal direction.",
        ),
        click.option(
            "--calibration-kinds",
            type=click.Choice(["harmless", "all"]),
            default="harmless",
            show_default=True,
            help="Dialogues that pruning is calibrated on.",
        ),
    )


repair_options = with_options(
    model_options,
    # How it is compressed and repaired.
    pruning_options("none"),
    click.option(
        "--rule",
        type=click.Choice(["auto", "paper", "restore", "least-squares", "refit", "reconstruct", "distill"]),
        default="auto",
        show_default=True,
        help="Repair rule; auto takes what measures best on validation prompts.",
    ),
    click.option("--allow-dense", is_flag=True, help="Let the repair write into removed weights."),
    click.option(
        "--max-over-refusal",
        type=click.FloatRange(0, 100),
        default=2.0,
        show_default=True,
        metavar="POINTS",
        help="Benign prompts the repair may refuse beyond the dense model.",
    ),
    click.option(
        "--max-perplexity",
        type=click.FloatRange(0, min_open=True),
        default=1.01,
        show_default=True,
        metavar="FACTOR",
        help="Of the compressed model's, what the repaired one's may be.",
    ),
    click.option("--controls", is_flag=True, help="Also measure the repair without its ingredients, one by one."),
    # What it is measured with.
    contrast_options,
    twins_option,
    calibration_option,
    click.option("--test-harmful", type=FILE, metavar="FILE", help="Separate test prompts to refuse."),
    click.option("--test-harmless", type=FILE, metavar="FILE", help="Separate test prompts to answer."),
    click.option("--test-twins", type=FILE, metavar="FILE", help="Separate test prompts that look harmful."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N test prompts of each kind."),
    max_new_tokens_option,
    batch_size_option,
    seed_option,
    # What is written, and how the run goes.
    click.option(
        "--gguf",
        type=click.Choice([*GGUF_TYPES, "none"]),
        metavar="TYPE|none",
        multiple=True,
        default=("f16",),
        show_default=True,
        callback=choose_gguf_types,
        help="GGUF type to write, as of `export --outtype`; may be repeated.",
    ),
    click.option("--out", type=FILE, metavar="DIR", help="Output folder; must not exist.  [default: by model name]"),
    click.option("--mlx-path", type=FILE, metavar="DIR", help="Where the MLX folder goes.  [default: OUT/mlx]"),
    click.option("--resume", is_flag=True, help="Continue an interrupted run in the same output folder."),
    click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, write nothing."),
    config_option,
    json_option,
)

export_options = with_options(
    click.argument("model_argument", metavar="MODEL", required=False),
    click.option("--model", "--hf-path", "model", metavar="MODEL", help=MODEL_HELP),
    revision_option,
    click.option("--outfile", help="File to write; {ftype} in it becomes f16, {FTYPE} F16.  [default: by model name]"),
    click.option(
        "--outtype",
        metavar="TYPE[,TYPE...]",
        default="f16",
        show_default=True,
        callback=choose_outtypes,
        help=f"{', '.join(GGUF_TYPES)}; or auto: what MODEL holds, quantized weights with their own codes and scales.",
    ),
    click.option("--embedding-type", metavar="TYPE", help="Of the token embedding.  [default: as the others]"),
    click.option("--output-type", metavar="TYPE", help="Of the output matrix.  [default: as the others]"),
    click.option("--dry-run", is_flag=True, help="List the tensors with type and bytes, write nothing."),
)

new_folder_option = click.option(
    "--out", "--mlx-path", "out", type=FILE, metavar="DIR", required=True, help="MLX folder to write; must not exist."
)

prune_options = with_options(
    model_options,
    pruning_options(),
    contrast_options,
    calibration_option,
    seed_option,
    new_folder_option,
    config_option,
    json_option,
)

quantize_options = with_options(
    model_options,
    click.option(
        "--q-mode",
        "mode",
        type=click.Choice(["affine", "mxfp4", "mxfp8", "nvfp4"]),
        default="affine",
        show_default=True,
        help="How a group of weights is stored.",
    ),
    click.option("--q-bits", "bits", type=int, metavar="N", help="Bits of a weight.  [default: 4, mxfp8: 8]"),
    click.option(
        "--q-group-size",
        "group_size",
        type=int,
        metavar="N",
        help="Weights that share a scale.  [default: 64, mxfp4 and mxfp8: 32, nvfp4: 16]",
    ),
    click.option(
        "--quant-predicate",
        "mixed",
        type=click.Choice(["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]),
        help="mlx-lm's mix of bits by module, instead of --q-bits.",
    ),
    new_folder_option,
    config_option,
    json_option,
)

SET = "FILE|HUB-ID"

eval_options = with_options(
    model_options,
    # Which prompts.
    click.option("--harmful", multiple=True, metavar=SET, help="Prompts to refuse; repeatable, kept apart."),
    click.option("--harmless", multiple=True, metavar=SET, help="Prompts to answer; repeatable."),
    click.option("--twins", multiple=True, metavar=SET, help="Harmless prompts that look harmful; repeatable."),
    click.option("--column", metavar="NAME", help="Column or key that holds the prompts.  [default: a known one]"),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N prompts of a set, or questions."),
    seed_option,
    click.option("--refusals/--no-refusals", default=True, help="--no-refusals asks no prompts."),
    # How they are asked and judged.
    click.option(
        "--attack",
        type=click.Choice(["vanilla", "system", "suffix", "sampling", "prefill"]),
        multiple=True,
        default=("vanilla",),
        show_default=True,
        help="How harmful prompts are asked; repeatable.",
    ),
    click.option("--system-prompt", metavar="TEXT|FILE", help="Of --attack system.  [default: to be safe and honest]"),
    click.option("--suffixes", type=FILE, metavar="FILE", help="Of --attack suffix: one a line, the worst counts."),
    click.option("--samples", type=click.IntRange(min=1), default=5, show_default=True, help="Of --attack sampling."),
    click.option("--prefill", metavar="TEXT", default="Sure, here is", show_default=True, help="Of --attack prefill."),
    max_new_tokens_option,
    batch_size_option,
    click.option("--judge-model", metavar="MODEL", help="Chat or guard model that judges the answers as well."),
    click.option(
        "--judge-style", type=click.Choice(["rubric", "guard"]), help="How it is asked.  [default: by its name]"
    ),
    click.option("--against", type=FILE, metavar="FILE", help="Earlier --out to compare the same prompts with."),
    # Utility.
    click.option("--text", type=FILE, metavar="FILE", help="Raw text to measure perplexity on."),
    click.option("--window", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens at a time."),
    click.option("--windows", type=click.IntRange(min=1), metavar="N", help="At most the first N windows."),
    click.option("--dense", metavar="MODEL", help="Model to measure KL and agreement against, on --text."),
    click.option("--multiple-choice", type=FILE, multiple=True, metavar="FILE", help="Questions, .jsonl; repeatable."),
    click.option("--tasks", multiple=True, metavar="NAME", help="lm-eval task; repeatable (needs lm-eval)."),
    # What is written.
    click.option("--out", type=FILE, metavar="FILE", help="Write the result as JSON."),
    click.option("--save-answers", type=FILE, metavar="FILE", help="Write prompts and answers as JSON lines."),
    config_option,
    json_option,
)

direction_options = with_options(
    click.argument("model"),
    revision_option,
    trust_option,
    contrast_options,
    twins_option,
    seed_option,
    click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Candidates listed."),
    click.option(
        "--out",
        type=FILE,
        metavar="FILE.safetensors",
        default="direction.safetensors",
        show_default=True,
        help="Where the direction is saved.",
    ),
    json_option,
)

compare_options = with_options(
    click.argument("dense"),
    click.argument("other"),
    trust_option,
    contrast_options,
    seed_option,
    click.option(
        "--splits", type=click.IntRange(min=20), default=200, show_default=True, help="Random halves of the prompts."
    ),
    click.option("--image", type=FILE, metavar="FILE.png|svg", help="Draw the heat map of layers and positions."),
    click.option("--out", type=FILE, metavar="FILE.json", help="Write the report."),
    json_option,
)

gguf_file_argument = click.argument("file", metavar="FILE.gguf", type=FILE)

verify_options = with_options(
    gguf_file_argument,
    click.option("--fast", is_flag=True, help="Hash keys and layout, but only a random sample of the tensors."),
    click.option("--root", metavar="SHA256", help="Root hash the file must have, known from elsewhere."),
    click.option("--require-manifest", is_flag=True, help="A file without a manifest fails."),
    json_option,
)

selftest_options = with_options(
    gguf_file_argument,
    click.option(
        "--canary-set",
        type=click.Choice(["demo", "built-in"]),
        help="Prompts to ask.  [default: the manifest's, without one built-in]",
    ),
    json_option,
)
