"""The options that several commands share, each said once, and how values are read; `option_sets` has the rest.

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
    "f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "mxfp4", "nvfp4", "tq1_0", "tq2_0",
    "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s",
    "iq4_nl", "iq4_xs", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
)  # fmt: skip

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


def choose_gguf_types(context: click.Context, _parameter: click.Parameter, types: tuple[str, ...]) -> tuple[str, ...]:
    """The GGUF types to write, in the order given, each once; ``none`` stands alone and means no file.

    Raises:
        click.BadParameter: ``none`` beside another type.
    """
    chosen = tuple(dict.fromkeys(types)) or (("auto",) if context.params.get("quantize") else ("f16",))
    if "none" in chosen and len(chosen) > 1:
        raise click.BadParameter("'none' cannot be combined with another type.")
    return () if chosen == ("none",) else chosen


def choose_outtypes(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The types of lists with commas, each once.

    Raises:
        click.BadParameter: one is unknown.
    """
    chosen = tuple(dict.fromkeys(word.strip().lower() for text in texts for word in text.split(",")))
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


# Parameters of `export` for files of both kinds, and those for adapters only.
_FILES = ("model_argument", "model", "outfile", "as_lora")
_OF_LORA = ("lora_rank", "base", "control_vector", "as_json")


def check_lora_options(context: click.Context) -> None:
    """Refuse options of `export` that do nothing together.

    Raises:
        click.UsageError: one that goes only with ``--as-lora``, or never with it.
    """
    as_lora = bool(context.params["as_lora"])
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if is_given and name not in _FILES and as_lora == (name not in _OF_LORA):
            clash = "does not go with --as-lora" if as_lora else "goes only with --as-lora"
            raise click.UsageError(f"{parameter.opts[0]} {clash}.", context)


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


def max_new_tokens_option(default: str) -> Callable[[Command], Command]:
    """How long answers may be; ``default`` says how long without it, since rates depend on it."""
    said = f"Longest answer, in tokens.  [default: {default}]"
    return click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help=said)


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


streaming_option = click.option(
    "--streaming/--no-streaming",
    default=None,
    help="Have one block in memory at a time, and write each when it is done.  [default: if the model does not fit]",
)

resume_option = click.option("--resume", is_flag=True, help="Continue an interrupted run in the same output folder.")


def pruning_options(*more: str) -> Callable[[Command], Command]:
    """How weights are removed; ``more`` are methods besides those that remove some."""
    return with_options(
        click.option("--sparsity", type=SHARE, default=0.5, show_default=True, help="Share of the weights to remove."),
        click.option(
            "--prune-method",
            type=click.Choice(["wanda", "sparsegpt", "magnitude", "random", "reap", *more]),
            default="wanda",
            show_default=True,
            help="How the weights to remove are chosen; random is a control, reap removes whole experts.",
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


def quantization_options(mode: str, bits: str, group_size: str, mixed: str) -> Callable[[Command], Command]:
    """How weights are stored, as in `mlx_lm.convert`; the arguments are what the values are called."""
    return with_options(
        click.option(
            "--q-mode",
            mode,
            type=click.Choice(["affine", "mxfp4", "mxfp8", "nvfp4"]),
            default="affine",
            show_default=True,
            help="How a group of weights is stored.",
        ),
        click.option("--q-bits", bits, type=int, metavar="N", help="Bits of a weight.  [default: 4, mxfp8: 8]"),
        click.option(
            "--q-group-size",
            group_size,
            type=int,
            metavar="N",
            help="Weights that share a scale.  [default: 64, mxfp4 and mxfp8: 32, nvfp4: 16]",
        ),
        click.option(
            "--quant-predicate",
            mixed,
            type=click.Choice(["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6", "refusal"]),
            help="mlx-lm's mix of bits by module, instead of --q-bits; refusal: more for what writes the direction.",
        ),
    )
