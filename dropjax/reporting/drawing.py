"""Drawing with matplotlib's own settings, so that the user's settings neither change a figure nor prevent it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dropjax.core.errors import InputError


def ensure_matplotlib(who: str) -> None:
    """Raise `InputError`, whose message names `who` wants to draw, if matplotlib cannot be used."""
    os.environ["MPLBACKEND"] = "Agg"  # one that does not exist would be in the way of the import
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)  # of fonts, and of folders that cannot be written to
    try:
        import matplotlib  # noqa: F401  # for the import itself
    except ImportError:
        raise InputError(f"{who}: expected matplotlib to be installed (dropjax[report]), got none") from None
    except Exception as error:
        raise InputError(f"{who}: expected a matplotlib that can be used, got {error}") from None


@contextmanager
def own_drawing(style: dict[Any, Any] | None = None) -> Iterator[None]:
    """Within this context, figures are made and saved with matplotlib's own settings and `style`, if it is given."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style or {})
        yield
