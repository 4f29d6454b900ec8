"""The tokenizer in a model's folder."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogcalib_jax.errors import UserError
from cogcalib_jax.hf.download import model_folder
from cogcalib_jax.hf.foreign import damage, read_object, require_own_files

# Any of these makes a tokenizer.
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "tokenizer.model",
    "tekken.json",
)

WITHOUT_EMBEDDING = "without_embedding"
"""attribute of a tokenizer: its tokens whose ids the model's embedding does not have"""


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a Hub id; code from the Hub is never run.

    Raises:
        UserError: not found, not reachable, damaged, incomplete, in need of its own code, or of
            files outside its folder.
    """
    folder = model_folder(source, weights=False)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        require_own_files(settings)
    try:
        # From the folder also for a Hub id, so that nothing is fetched by another way.
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        tokenizer("a")  # some settings are looked at only now
    except Exception as error:
        # The tokenizers library raises the bare `Exception` for a damaged tokenizer.json, and
        # transformers stumbles over damaged content with the types below; others are bugs.
        # That a JSON file is nested without end shows as a RecursionError.
        expected = (
            *(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError),
            *(ArithmeticError, RecursionError, StrictDataclassError),
        )
        if type(error) is not Exception and not isinstance(error, expected):
            raise
        raise UserError(_why_not_loaded(folder, error)) from error
    # Where the file with the vocabulary is missing, transformers 5 may make a tokenizer out of the
    # class that a config names, with its special tokens and nothing else.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.added_tokens_decoder):
        raise UserError(_without_vocabulary(Path(source)))
    tokenizer.name_or_path = str(source)
    return tokenizer


def _without_vocabulary(source: Path) -> str:
    present = any((source / name).is_file() for name in TOKENIZER_FILES)
    holds = "its tokenizer has no vocabulary" if present else "holds no tokenizer"
    return f"{source}: {holds}; copy tokenizer.json and tokenizer_config.json there"


def _why_not_loaded(source: Path, error: Exception) -> str:
    """What a user can do about a tokenizer that transformers stumbles over. It tells damaged files
    in words of its own code, so they are looked at here.

    Raises:
        UserError: a file in the folder `source` is no JSON object.
    """
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if source.is_dir() and not present:
        return _without_vocabulary(source)
    for name in present:
        if name.endswith(".json"):
            read_object(source / name, "")
    if "custom code" in str(error):
        return (
            f"{source}: its tokenizer needs Python code that comes with it, which is never run; use"
            " a model whose tokenizer is a tokenizer.json that transformers reads by itself"
        )
    return (
        f"{source}: cannot load a tokenizer ({damage(error)}); fetch tokenizer.json and"
        " tokenizer_config.json again, or name another model"
    )
