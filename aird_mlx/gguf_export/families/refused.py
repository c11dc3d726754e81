"""x"""

REFUSED: dict[str, str] = {}
