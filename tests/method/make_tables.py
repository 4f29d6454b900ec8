"""Write the tables of terms and gates in docs/method.md from their registries.

python -m tests.method.make_tables
"""

import re
from pathlib import Path

from cogcalib_jax.method.gates import GATES
from cogcalib_jax.method.terms import TERMS
from cogcalib_jax.registry import Registry
from tests.method.registered import own_names

DOCUMENT = Path(__file__).parents[2] / "docs" / "method.md"


def table(registry: Registry) -> str:
    """Return the registry as a Markdown table, without what tests registered."""
    weighs = registry is TERMS
    rows = [f"| name | settings |{' weight |' if weighs else ''} in tables | meaning |"]
    rows.append("|---" * (5 if weighs else 4) + "|")
    for entry in registry:
        if entry.name in own_names(registry):
            settings = f"`{entry.settings}`" if entry.settings else ""
            weight = [f"{entry.cls.default_weight:g}"] if weighs else []
            cells = (f"`{entry.name}`", settings, *weight, entry.label, entry.summary)
            rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """Return the document with its tables written anew."""
    for name, content in (("terms", table(TERMS)), ("gates", table(GATES))):
        pattern = rf"<!-- {name} -->\n.*<!-- end of {name} -->"
        written = f"<!-- {name} -->\n{content}\n<!-- end of {name} -->"
        text = re.sub(pattern, lambda _, new=written: new, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
