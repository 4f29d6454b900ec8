"""What no source file of the project does, since it would let data run code or leave its place."""

import ast
from collections.abc import Iterator

# Modules whose readers run code, or unpack archives; and torch, whose checkpoints are pickles.
MODULES = frozenset(
    [
        "cloudpickle",
        "code",
        "ctypes",
        "dill",
        "imp",
        "jsonpickle",
        "marshal",
        "pickle",
        "runpy",
        "shelve",
        "tarfile",
        "torch",
        "zipfile",
    ]
)
# Functions that run text as code, give it to a shell, or make objects of what a file says.
CALLS = frozenset(
    [
        "importlib.import_module",
        "importlib.util.spec_from_file_location",
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "os.execv",
        "os.execvp",
        "os.spawnv",
        "pty.spawn",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "np.load",
        "numpy.load",
        "jnp.load",
        "np.fromfile",
        "shutil.unpack_archive",
        "yaml.load",
        "yaml.load_all",
        "yaml.full_load",
        "yaml.unsafe_load",
        "asyncio.create_subprocess_shell",
        "os.startfile",
    ]
)
# Arguments that may only be given one value.
ARGUMENTS = {"shell": False, "allow_pickle": False, "trust_remote_code": False}


def forbidden(source: str) -> Iterator[str]:
    """`LINE: what` for everything in the source text that the lists above name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                used = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module)):
                used = [module]
            case _:
                used = []
        for name in used:
            if name.split(".")[0] in MODULES:
                yield f"{node.lineno}: imports {name}"
        if isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in CALLS:
                yield f"{node.lineno}: calls {name}"
            for keyword in node.keywords:
                allowed = ARGUMENTS.get(keyword.arg or "", keyword)
                value = keyword.value
                if allowed is not keyword and not (
                    isinstance(value, ast.Constant) and value.value is allowed
                ):
                    yield f"{node.lineno}: gives {keyword.arg} another value than {allowed}"
