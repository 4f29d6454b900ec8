"""The style that all pictures share."""

from cogcalib_jax.report.canvas import headline, new_figure, project_style, save


def test_dollars_in_a_name_are_no_formula(tmp_path):
    """Names of conditions, tasks and runs are the user's: these dollars enclose no TeX."""
    with project_style():
        figure = new_figure(3, 2)
        headline(figure, r"under 5$ \nosuch a^^ 9$", "")
        save(figure, tmp_path / "priced.png")
    assert (tmp_path / "priced.png").stat().st_size > 0
