"""From a model folder to a GGUF file that llama.cpp runs, and the check that it runs the same.

`hyperparameters` reads the config, `families` says what each model type makes of it and of its tensors in `pieces` and
`changes`, `tokenizer` reads the vocabulary, `stored` the weights; `tensors` plans the file, `choice` gives each tensor
a type of `outtypes`, `encoding` turns it into `blocks` or takes over MLX's (`repack`); `preparation` plans all that,
`export_plan` says what it comes to, `header` describes it, and `writer` puts it in one file, with `llama_quantizer` for
the types that llama.cpp writes itself. `runtime` runs it in llama.cpp (optional package llama-cpp-python) and `parity`
compares it with MLX. Nothing runs at import. Not called ``gguf``, which is the name of the package that reads these
files back.
"""

from aird_mlx.gguf_export.export_plan import ExportPlan, plan_export
from aird_mlx.gguf_export.families import exportable_families, refused_families
from aird_mlx.gguf_export.file_names import name_files, name_imatrix
from aird_mlx.gguf_export.parity import PROBE_TEXTS, Parity, check_parity
from aird_mlx.gguf_export.preparation import check_exportable, resolve_outtype
from aird_mlx.gguf_export.runtime import LlamaRuntime
from aird_mlx.gguf_export.writer import GgufFile, check_new_file, export_gguf
from aird_mlx.libllama import NOT_INSTALLED, is_available

__all__ = [
    "NOT_INSTALLED",
    "PROBE_TEXTS",
    "ExportPlan",
    "GgufFile",
    "LlamaRuntime",
    "Parity",
    "check_exportable",
    "check_new_file",
    "check_parity",
    "export_gguf",
    "exportable_families",
    "is_available",
    "name_files",
    "name_imatrix",
    "plan_export",
    "refused_families",
    "resolve_outtype",
]
