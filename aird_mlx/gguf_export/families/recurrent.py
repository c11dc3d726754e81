"""x"""
from aird_mlx.gguf_export.families.family import Family
RECURRENT: dict[str, Family] = {}
