"""Which options each command takes, in the order of its help."""

from __future__ import annotations

import click

from .options import (
    FILE,
    GGUF_TYPES,
    batch_size_option,
    calibration_option,
    choose_gguf_types,
    choose_outtypes,
    config_option,
    contrast_options,
    json_option,
    max_new_tokens_option,
    model_options,
    pruning_options,
    quantization_options,
    resume_option,
    revision_option,
    seed_option,
    streaming_option,
    trust_option,
    twins_option,
    with_options,
)

repair_options = with_options(
    model_options,
    # How it is compressed and repaired.
    pruning_options("none"),
    click.option("-q", "--quantize", is_flag=True, help="Also quantize; the quantized model is repaired."),
    quantization_options("q_mode", "q_bits", "q_group_size", "quant_predicate"),
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
    click.option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="At most N test prompts of each kind, the first."
    ),
    max_new_tokens_option("64"),
    batch_size_option,
    seed_option,
    # What is written, and how the run goes.
    click.option(
        "--gguf",
        type=click.Choice([*GGUF_TYPES, "auto", "none"]),
        metavar="TYPE|auto|none",
        multiple=True,
        callback=choose_gguf_types,
        help="GGUF type to write, as of `export --outtype`; may be repeated.  [default: f16; with -q auto]",
    ),
    click.option("--out", type=FILE, metavar="DIR", help="Output folder; must not exist.  [default: by model name]"),
    click.option("--mlx-path", type=FILE, metavar="DIR", help="Where the MLX folder goes.  [default: OUT/mlx]"),
    streaming_option,
    resume_option,
    click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, write nothing."),
    config_option,
    json_option,
)

export_options = with_options(
    model_options,
    click.option("--outfile", help="File to write; {ftype} in it becomes f16, {FTYPE} F16.  [default: by model name]"),
    click.option(
        "--outtype",
        metavar="TYPE[,TYPE...]",
        multiple=True,
        default=("f16",),
        show_default=True,
        callback=choose_outtypes,
        help=f"{', '.join(GGUF_TYPES)}; or auto: what MODEL holds, quantized weights with their own codes and "
        "scales. Repeatable.",
    ),
    click.option("--embedding-type", metavar="TYPE", help="Of the token embedding.  [default: as the others]"),
    click.option("--output-type", metavar="TYPE", help="Of the output matrix.  [default: as the others]"),
    click.option(
        "--imatrix",
        metavar="FILE|measure",
        help="K- and I-quants weigh errors by it: llama-imatrix's, or measured.  [default: where needed]",
    ),
    click.option(
        "--split-max-size",
        "max_size",
        metavar="N(K|M|G)",
        help="Most bytes of tensors in a file: NAME-00001-of-00003.gguf.",
    ),
    click.option(
        "--split-max-tensors", "max_tensors", type=click.IntRange(min=1), metavar="N", help="Most tensors in a file."
    ),
    click.option("--zero-exact", is_flag=True, help="q4_1 and q5_1 whose zero is exact: pruned weights stay zero."),
    click.option(
        "--check/--no-check", default=True, help="Run the file in llama.cpp beside MLX.  [default: where installed]"
    ),
    click.option("--chat-apps", is_flag=True, help="Also write NAME.Modelfile, NAME.preset.ini and NAME.run.sh."),
    click.option("--lm-studio", type=FILE, metavar="DIR", help="Also put the files into LM Studio's folder of models."),
    click.option("--dry-run", is_flag=True, help="List the tensors with type and bytes, write nothing."),
    click.option(
        "--as-lora",
        is_flag=True,
        help="MODEL is what `repair` wrote: write its repair as adapters for the compressed model.",
    ),
    click.option("--lora-rank", type=click.IntRange(min=1), metavar="N", help="Cut adapters to it.  [default: exact]"),
    click.option("--control-vector", is_flag=True, help="Also write the refusal direction as one; a blunt tool."),
    click.option("--base", type=FILE, metavar="FILE.gguf", help="The compressed model's file that an adapter is for."),
    json_option,
)

new_folder_option = click.option(
    "--out", "--mlx-path", "out", type=FILE, metavar="DIR", required=True, help="MLX folder to write; must not exist."
)

prune_options = with_options(
    model_options,
    pruning_options("blocks"),
    contrast_options,
    calibration_option,
    seed_option,
    new_folder_option,
    streaming_option,
    resume_option,
    config_option,
    json_option,
)

inspect_options = with_options(model_options, json_option)

quantize_options = with_options(
    model_options,
    quantization_options("mode", "bits", "group_size", "mixed"),
    click.option(
        "--method",
        type=click.Choice(["round", "gptq", "awq", "dwq", "dynamic"]),
        default="round",
        show_default=True,
        help="Rounding that keeps what was pruned, or one of mlx-lm's that learn from the model's answers.",
    ),
    contrast_options,
    calibration_option,
    seed_option,
    new_folder_option,
    streaming_option,
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
    max_new_tokens_option("512, or what the context leaves"),
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

# What says who made a file: it has to come from elsewhere.
origin_options = with_options(
    click.option("--root", metavar="SHA256", help="Root hash the file must have, known from elsewhere."),
    click.option("--public-key", type=FILE, metavar="KEY.pub", help="Whose signature it must have (PEM)."),
    click.option("--signature", type=FILE, metavar="FILE.sig", help="The signature.  [default: FILE.gguf.sig]"),
)

verify_options = with_options(
    gguf_file_argument,
    click.option("--fast", is_flag=True, help="Hash keys and layout, but only a random sample of the tensors."),
    click.option("--require-manifest", is_flag=True, help="A file without a manifest fails."),
    origin_options,
    json_option,
)

sign_options = with_options(
    gguf_file_argument,
    click.option("--key", type=FILE, metavar="KEY.pem", required=True, help="Private elliptic-curve key (PEM)."),
    click.option("--out", type=FILE, metavar="FILE.sig", help="Where it goes.  [default: FILE.gguf.sig]"),
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
