"""From an MLX folder to local chat programs: GGUF files, and what Ollama, llama-server and LM Studio need beside them.

python examples/chat_apps.py --model demo --out chat-apps --lm-studio ~/.lmstudio/models
"""

import argparse
from pathlib import Path

from aird_mlx.chat_apps import place_in_lm_studio, write_chat_apps
from aird_mlx.gguf_export import export_gguf
from aird_mlx.model import find_folder


def main() -> None:
    """Export one model, and say for every program how it is started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="hub id, folder, or demo")
    parser.add_argument("--out", type=Path, default=Path("chat-apps"), help="folder to write into")
    parser.add_argument("--lm-studio", type=Path, help="LM Studio's folder of models")
    options = parser.parse_args()

    name = Path(options.model).name
    written = export_gguf(find_folder(options.model), options.out / f"{name}-F16.gguf", "f16")
    apps = write_chat_apps(written.path, written.chat)
    print(f"Ollama:       ollama create {name} -f {apps.files['Modelfile']} && ollama run {name}")
    print(f"llama-server: {apps.files['run.sh']}   (verifies the file first)")
    if "preset.ini" in apps.files:
        print(f"several:      llama-server --models-preset {apps.files['preset.ini']}")
    if options.lm_studio:
        print(f"LM Studio:    {place_in_lm_studio(written.path, options.lm_studio, options.model)}")
    for note in (*written.notes, *apps.notes):
        print("note:", note)


if __name__ == "__main__":
    main()
