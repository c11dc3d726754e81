"""Local chat programs: what Ollama, llama-server and LM Studio need beside a GGUF file.

`ollama` translates the chat template and proves it by rendering (`go_template`); `llama_server` writes a preset and a
script that verifies before it serves; `lm_studio` knows its tree of models; `write` puts the files beside a GGUF.
"""

from aird_mlx.chat_apps.lm_studio import check_new_place, lm_studio_place, place_in_lm_studio
from aird_mlx.chat_apps.write import ChatAppFiles, check_new_chat_apps, write_chat_apps

__all__ = [
    "ChatAppFiles",
    "check_new_chat_apps",
    "check_new_place",
    "lm_studio_place",
    "place_in_lm_studio",
    "write_chat_apps",
]
