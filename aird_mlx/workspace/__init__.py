"""The folder of a run, and the files in it: whole or not there, and resumable."""

from aird_mlx.workspace.records import damaged, read_json, read_record, write_json, write_record
from aird_mlx.workspace.run import Workspace, check_started
from aird_mlx.workspace.whole import (
    check_new_folder,
    check_space,
    check_writable,
    folders_above,
    hash_file,
    link_or_copy,
    partial_of,
    remove,
    unfinished_of,
    whole_file,
    whole_folder,
    write_text,
    write_whole,
    writing_to,
)

__all__ = [
    "Workspace",
    "check_new_folder",
    "check_space",
    "check_started",
    "check_writable",
    "damaged",
    "folders_above",
    "hash_file",
    "link_or_copy",
    "partial_of",
    "read_json",
    "read_record",
    "remove",
    "unfinished_of",
    "whole_file",
    "whole_folder",
    "write_json",
    "write_record",
    "write_text",
    "write_whole",
    "writing_to",
]
