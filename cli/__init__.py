"""The command line of aird-mlx; installed as ``aird_mlx_cli``. It parses, calls the library, renders."""
