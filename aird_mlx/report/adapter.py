"""What an adapter made from a repair is, and what it does."""

from __future__ import annotations

from dataclasses import dataclass, field

from aird_mlx.report.figures import SCHEMA, RefusalRates


@dataclass(frozen=True)
class AdapterCheck:
    """Canary prompts in llama.cpp: the base alone, with the adapter, and the repaired model in MLX beside it.

    Attributes:
        tokens: positions whose logits were compared.
        argmax_agreement: share of them with the same likeliest next token.
        max_logit_difference: largest over positions and vocabulary.
        mean_kl: mean over positions of KL(repaired || base with adapter), nats.
        base, adapted, repaired: how often each refused.
    """

    tokens: int
    argmax_agreement: float
    max_logit_difference: float
    mean_kl: float
    base: RefusalRates
    adapted: RefusalRates
    repaired: RefusalRates


@dataclass(frozen=True)
class AdapterReport:
    """A repair as adapters of the compressed model.

    Attributes:
        model: what was repaired.
        rule: of the repair.
        rank: largest rank of the llama.cpp adapter's tensors.
        lost: of the repair's change, what that rank leaves out, relative (Frobenius norms); 0: exact.
        lora_bytes, adapter_bytes: sizes of the llama.cpp and of the MLX adapter.
        repaired_bytes: of the repaired model's weights in MLX, to compare with.
        base_sha256: of the GGUF file that the adapter is for, None where none was given.
        base_distance: how far that file's weights are from those that were repaired, relative.
        check: None where there is no base, or no llama.cpp to run it.
    """

    model: str
    rule: str
    rank: int
    lost: float
    lora_bytes: int
    adapter_bytes: int
    repaired_bytes: int
    base_sha256: str | None
    base_distance: float | None
    check: AdapterCheck | None
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA
