"""A model folder that is written block by block: a file for each block as it is done, one for everything else.

Each file is complete or not there, and carries a record of what was done to its block, so that a run that was killed
at any moment goes on with the first block that has no file. config.json is written last: with it, the folder is
complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters, save_config

from aird_mlx.model.chat_model import ChatModel
from aird_mlx.model.files import copy_companions
from aird_mlx.workspace import damaged, whole_file

RECORD = "aird.block"


class ShardFolder:
    """The folder that ``model`` is written to, block by block.

    Attributes:
        folder: what ``mlx_lm.load`` reads once it is complete.
    """

    def __init__(self, folder: Path, model: ChatModel) -> None:
        self.folder = folder
        self._model = model
        self._count = len(model.blocks) + 1

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to write."""
        return (self.folder / "config.json").is_file()

    def has(self, block: int) -> bool:
        """Whether a block is written."""
        return self._path(block).is_file()

    def take(self, block: int) -> Any:
        """What `write` was given for a block, whose weights the model then has; None if it is not written yet.

        Raises:
            ResumeError: its file is damaged.
        """
        path = self._path(block)
        if not self.has(block):
            return None
        try:
            arrays, metadata = mx.load(str(path), return_metadata=True)
            record = json.loads(metadata[RECORD])
            self._adopt(block, arrays)
        except (RuntimeError, KeyError, ValueError) as error:
            raise damaged(path, error) from error
        return record

    def write(self, block: int, record: Any) -> None:
        """Write a block as it is now, with what a resumed run is to know of it; a streamed model lets go of it."""
        self._save(self._path(block), self._arrays_of(block), record)
        if self._model.stream is not None:
            self._model.stream.redirect(block, self._path(block), self._prefix(block))

    def finish(self) -> None:
        """Write what is not written yet: blocks, what is in none, the index, the tokenizer and config.json."""
        inside = tuple(self._prefix(block) for block in range(self._count - 1))
        parameters = dict(tree_flatten(self._model.network.parameters()))
        rest = {name: array for name, array in parameters.items() if not name.startswith(inside)}
        self._save(self._path(None), rest, None)
        owner = {name: self._path(None).name for name in rest}
        for block in range(self._count - 1):
            if not self.has(block):
                self.write(block, None)
            owner |= {name: self._path(block).name for name in parameters if name.startswith(self._prefix(block))}
        total = {
            "total_size": sum(array.nbytes for array in parameters.values()),
            "total_parameters": get_total_parameters(self._model.network),
        }
        index = {"metadata": total, "weight_map": {name: owner[name] for name in sorted(owner)}}
        with whole_file(self.folder / "model.safetensors.index.json") as path:
            path.write_text(json.dumps(index, indent=4), encoding="utf-8")
        copy_companions(self._model.folder, self.folder)
        with whole_file(self.folder / "config.json") as path:
            save_config(dict(self._model.config), path)

    def _arrays_of(self, block: int) -> dict[str, mx.array]:
        arrays = dict(tree_flatten(self._model.blocks[block].parameters()))
        return {self._prefix(block) + name: array for name, array in arrays.items()}

    def _adopt(self, block: int, arrays: dict[str, mx.array]) -> None:
        if self._model.stream is not None:
            self._model.stream.redirect(block, self._path(block), self._prefix(block))
            return
        prefix = self._prefix(block)
        self._model.blocks[block].load_weights(
            [(name.removeprefix(prefix), array) for name, array in arrays.items()], strict=True
        )

    def _save(self, path: Path, arrays: dict[str, mx.array], record: Any) -> None:
        metadata = {"format": "mlx"} | ({} if record is None else {RECORD: json.dumps(record)})
        with whole_file(path) as partial:
            mx.save_safetensors(str(partial), arrays, metadata=metadata)

    def _prefix(self, block: int) -> str:
        return f"{self._model.architecture.blocks}.{block}."

    def _path(self, block: int | None) -> Path:
        """The file of a block; None: of what is in no block, which comes first."""
        number = 1 if block is None else block + 2
        return self.folder / f"model-{number:05d}-of-{self._count:05d}.safetensors"
