"""The style that all pictures share."""

from cogcalib_jax.report.canvas import (
    DARK,
    INK,
    headline,
    new_figure,
    place_axes,
    project_style,
    save,
)


def test_dollars_in_a_name_are_no_formula(tmp_path):
    """Names of conditions, tasks and runs are the user's: these dollars enclose no TeX."""
    with project_style():
        figure = new_figure(3, 2)
        headline(figure, r"under 5$ \nosuch a^^ 9$", "")
        save(figure, tmp_path / "priced.png")
    assert (tmp_path / "priced.png").stat().st_size > 0


def test_a_figure_follows_the_colours_of_the_page_and_has_the_same_bytes_again(tmp_path):
    with project_style():
        figure = new_figure(3, 2)
        place_axes(figure, 0.5, 0.3, 2, 1).set_title("a title")
        for name in ("one", "two"):
            save(figure, tmp_path / f"{name}.png")
    first, second = ((tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert first == second
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    # The colour of text as Matplotlib writes it, and the rule that replaces it.
    assert f"fill: {INK}".encode() in first.partition(b"</style>")[2]
    assert f'[style*="fill: {INK}"]{{fill:{DARK[INK]}!important}}'.encode() in first
