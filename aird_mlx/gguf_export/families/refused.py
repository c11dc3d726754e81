"""Model types that mlx-lm runs and that no file can be exported of, and why.

Checked against llama.cpp's ``src/models``; what was computed differently was measured on tiny random models, f32.
"""

from __future__ import annotations

MISSING = "llama.cpp has no such architecture, but those of `exportable_families`"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "baichuan_m1", "bailing_moe_linear", "gptj", "helium", "iquestloopcoder", "Klear", "lille-130m",
            "longcat_flash", "longcat_flash_ngram", "nanochat", "olmo_hybrid", "phi3small", "phixtral",
            "recurrent_gemma", "telechat3",
        ),
        MISSING,
    ),
    "phimoe": (
        "MLX weighs the experts by sparse mixing, llama.cpp by one softmax (same top token at 8 % of positions), and "
        "both must compute the same"
    ),
}  # fmt: skip
