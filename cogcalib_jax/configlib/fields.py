"""What a config dataclass tells about itself, and what its checks raise."""

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

from cogcalib_jax.configlib.renamed import renamed_from
from cogcalib_jax.configlib.values import show
from cogcalib_jax.errors import UserError


class FieldError(UserError):
    """A value outside a field's range. `field` is relative to the dataclass that raised it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def check(condition: bool, field: str, message: str) -> None:
    """Raise FieldError unless `condition` holds; for `__post_init__` of config dataclasses.

    Args:
        condition: what must be true of the value.
        field: the field's name, or a dotted path below the dataclass that checks.
        message: "must be ...", with what is allowed; loading adds source, path and value.
    """
    if not condition:
        raise FieldError(field, message)


def setting(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    often: bool = False,
    affects_identity: bool = True,
    affects_style: bool | str = True,
    affects_questions: bool = True,
    place: bool = False,
    added: bool = False,
    of_adapter: bool = False,
) -> Any:
    """Return a dataclass field that says of itself what others would have to list.

    Args:
        default: its value if none is given.
        default_factory: likewise, as `dataclasses.field` takes it; for a section its class.
        often: whether `--help` shows it; the others are shown by `--help-all`.
        affects_identity: whether the command that starts a run and the one that resumes it must
            agree on it.
        affects_style: whether style adaptation depends on it; the name of a field beside it: only
            while that one is unset.
        affects_questions: whether test questions, or the way they are asked, depend on it.
        place: whether it is a path that may move, what lies there being compared by hash.
        added: whether identities of earlier releases lack it, which had its default.
        of_adapter: whether a stored adapter states it.
    """
    said = {
        "often": often,
        "affects_identity": affects_identity,
        "affects_style": affects_style,
        "affects_questions": affects_questions,
        "place": place,
        "added": added,
        "of_adapter": of_adapter,
    }
    return dataclasses.field(default=default, default_factory=default_factory, metadata=said)


def often(default: Any, **more: Any) -> Any:
    """Return a `setting` that `--help` shows; more: what else it says of itself."""
    return setting(default, often=True, **more)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config dataclass; the marks behind `default` are those of `setting`."""

    name: str
    kind: Any
    """Its type, resolved."""
    default: Any
    """`dataclasses.MISSING` where a value is required, and for a section built from nothing."""
    often: bool = False
    affects_identity: bool = True
    affects_style: bool | str = True
    affects_questions: bool = True
    place: bool = False
    added: bool = False
    of_adapter: bool = False

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.kind)


def fields(cls: type, base: Any = dataclasses.MISSING) -> list[Field]:
    """The fields of a config dataclass; defaults come from the instance `base` where given."""
    hints = get_type_hints(cls)

    def default(field: dataclasses.Field) -> Any:
        if base is not dataclasses.MISSING:
            return getattr(base, field.name)
        # A section that is just `Section()` starts from its class: an instance may already carry
        # values that its __post_init__ derived from others, which an override may contradict.
        if field.default_factory in (dataclasses.MISSING, hints[field.name]):
            return field.default
        return field.default_factory()

    return [
        Field(field.name, hints[field.name], default(field), **field.metadata)
        for field in dataclasses.fields(cls)
        if field.init
    ]


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, type) of every field that is not a section, in order."""
    for field in fields(cls):
        if field.is_section:
            yield from leaves(field.kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.kind


def unknown_key(cls: type, path: str, source: str) -> UserError:
    """The error for a path that is no field of the config `cls`, with the one probably meant."""
    known = [leaf for leaf, _ in leaves(cls)]
    sections = {leaf.rpartition(".")[0] for leaf in known} - {""}
    near = difflib.get_close_matches(path, [*known, *sorted(sections)], n=1, cutoff=0.75)
    # A field under the wrong section, or under none: `epochs` for `training.epochs`.
    name = path.rpartition(".")[2]
    near = near or [leaf for leaf in known if leaf.rpartition(".")[2] == name]
    near = near or [leaf for leaf in renamed_from(name) if leaf in known]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    if path in near:
        return UserError(f"{source}: {path} must be written as nested sections, a field to a line")
    hint = f"did you mean {near[0]}?" if near else "--help lists every field"
    return UserError(f"{source}: unknown key {show(path)}; {hint}")


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string under the field, on one line; fields without one are absent."""
    docs = {}
    for owner in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for statement, following in zip(body, body[1:], strict=False):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(doc))),
                ):
                    docs[name] = " ".join(doc.split())
    return docs
