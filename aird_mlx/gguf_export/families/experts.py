"""x"""
from aird_mlx.gguf_export.families.family import Family
WITH_EXPERTS: dict[str, Family] = {}
