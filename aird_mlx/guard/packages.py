"""Whether what an extra brings is installed: asked before it is imported, and answered in one line."""

from __future__ import annotations

import importlib.util

from aird_mlx.errors import DependencyError

# Extra -> what needs it, and its packages by module. OpenSSL is imported by model-signing, which 1.1 does not name
# among what it needs.
EXTRAS = {
    "sign": ("signatures need it", {"model_signing": "model-signing", "OpenSSL": "pyopenssl"}),
    "serve": (
        "the web server needs it",
        {name.replace("-", "_"): name for name in ("starlette", "uvicorn", "pydantic", "prometheus-client")},
    ),
}


def check_packages(stage: str, extra: str) -> None:
    """See that an extra is installed.

    Args:
        stage: that wants it.
        extra: ``sign`` or ``serve``.

    Raises:
        DependencyError: it is not.
    """
    needed, packages = EXTRAS[extra]
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DependencyError(
            f"{stage}: {', '.join(missing)} not installed; {needed}. Run `pip install 'aird-mlx[{extra}]'`."
        )
