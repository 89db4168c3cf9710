from pathlib import Path

import matplotlib as mpl
import pytest

from rd_jax.report.figures import write_figures
from tests.report.evaluated import CHECKSUM, add_evaluation, row


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one evaluation, `a.b`, and its figures, drawn while matplotlib is set oddly."""
    folder = tmp_path_factory.mktemp("run")
    place = add_evaluation(folder, "a.b")
    odd = {"axes.facecolor": "red", "font.family": "serif", "savefig.bbox": "tight"}
    with mpl.rc_context({**odd, "text.usetex": True}):
        before = dict(mpl.rcParams)
        write_figures(place, row("a.b", 0.9876, checkpoint=CHECKSUM))
        assert dict(mpl.rcParams) == before
    return folder
