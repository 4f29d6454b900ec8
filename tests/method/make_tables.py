"""Write the tables of terms, gates, calibrators and baselines in the docs from their registries.

python -m tests.method.make_tables
"""

import re
from pathlib import Path

from cogcalib_jax.baselines.registry import BASELINES
from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.method.gates import GATES
from cogcalib_jax.method.terms import TERMS
from cogcalib_jax.registry import Registry
from tests.method.registered import own_names

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTS = (DOCS / "method.md", DOCS / "evaluation.md", DOCS / "baselines.md")


def table(registry: Registry) -> str:
    """Return the registry as a Markdown table, without what tests registered."""
    more, cell = MORE.get(registry.kind, ((), lambda cls: ()))
    heads = ("name", "settings", *more, "in tables", "meaning")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in registry:
        if entry.name in own_names(registry):
            settings = f"`{entry.settings}`" if entry.settings else ""
            cells = (f"`{entry.name}`", settings, *cell(entry.cls), entry.label, entry.summary)
            rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _needs(calibrator: type) -> str:
    """What it needs beside scores, as its settings' defaults have it."""
    one = calibrator()
    needs = {"the start": one.needs_start, "one list of options": one.needs_classes}
    return ", ".join(name for name, needed in needs.items() if needed)


MORE = {
    "term": (("weight",), lambda cls: (f"{cls.default_weight:g}",)),
    "calibrator": (("needs",), lambda cls: (_needs(cls),)),
}


def with_tables(text: str) -> str:
    """Return the document with its tables written anew."""
    tables = {"terms": TERMS, "gates": GATES, "calibrators": CALIBRATORS, "baselines": BASELINES}
    for name, content in {name: table(registry) for name, registry in tables.items()}.items():
        pattern = rf"<!-- {name} -->\n.*<!-- end of {name} -->"
        written = f"<!-- {name} -->\n{content}\n<!-- end of {name} -->"
        text = re.sub(pattern, lambda _, new=written: new, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
