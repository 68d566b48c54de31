"""Load tokenizers from the embedded file, a tokenizer.json, a folder, the Hub or as bare ids; each has a BOS token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


BOS_NAMES = ("<|bos|>", "<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
"""Usual names of the beginning-of-sequence token, tried in order where a tokenizer file has no configuration."""
IDS = "ids:"
"""Prefix of tokenizers without text: `ids:N` has the tokens "0" to "N-1", and a token's id is its number."""
FEWEST_IDS = 4
"""A filler, a key and two values: less leaves a synthetic task nothing to ask."""


def load_tokenizer(path_or_name: str | Path = "embedded") -> PreTrainedTokenizerFast:
    """Load a fast tokenizer with `bos_token` set.

    path_or_name: "embedded", a tokenizer.json, a folder with one, a name on the Hub, or `ids:N`. A document's ids are
    [bos_token_id] + encode(text, add_special_tokens=False). Raises ValueError if the tokenizer is not found, is not a
    fast one, or has no BOS token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (count := ids_count(str(path_or_name))) is not None:
        return _ids_tokenizer(count)
    if str(path_or_name) == "embedded":
        path_or_name = corpus.TOKENIZER
    path = Path(path_or_name).expanduser()
    if path.is_dir() and not (path / "tokenizer_config.json").is_file():
        path = path / "tokenizer.json"
    if path.is_file():
        return _tokenizer_from_file(path)
    if (path.suffix == ".json" or path.is_absolute()) and not path.is_dir():
        raise ValueError(f"tokenizer: no file {path}; give a tokenizer.json, a folder with one, or 'embedded'")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        from huggingface_hub import constants

        offline = " HF_HUB_OFFLINE is set: unset it to download;" if constants.HF_HUB_OFFLINE else ""
        raise ValueError(
            f"tokenizer: {str(path_or_name)!r} could be loaded neither from this machine nor from the Hub "
            f"({type(error).__name__});{offline} give a tokenizer.json, a folder with one, or 'embedded'"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer: {str(path_or_name)!r} has no tokenizer.json; convert it to a fast tokenizer")
    if tokenizer.bos_token is None:
        raise ValueError(
            f"tokenizer: {str(path_or_name)!r} has no BOS token to separate documents; set bos_token in a copy of its "
            "tokenizer_config.json and give that folder"
        )
    return tokenizer


def ids_count(name: str) -> int | None:
    """N of the tokenizer `ids:N`; None for any other name. Raises ValueError if N is no whole number, or too small."""
    if not name.startswith(IDS):
        return None
    digits = name.removeprefix(IDS)
    if not (digits.isascii() and digits.isdigit()) or int(digits) < FEWEST_IDS:
        raise ValueError(f"tokenizer: {name!r} names no number of ids; write {IDS}N with N at least {FEWEST_IDS}")
    return int(digits)


def bare_ids(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """N if a tokenizer is `ids:N`, wherever it was loaded from, else None."""
    vocabulary = tokenizer.get_vocab()
    return len(vocabulary) if vocabulary == {str(number): number for number in range(len(vocabulary))} else None


def _ids_tokenizer(count: int) -> PreTrainedTokenizerFast:
    """The tokenizer `ids:count`. Text is numbers between spaces; BOS is "0", the filler of synthetic rows."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({str(number): number for number in range(count)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    zero = AddedToken("0", single_word=True, normalized=False, special=True)  # else it would split "10"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=zero, eos_token=zero, clean_up_tokenization_spaces=False
    )


def _tokenizer_from_file(path: Path) -> PreTrainedTokenizerFast:
    """Load a bare tokenizer.json. Its BOS also serves as EOS: a document ends where the next one begins."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception for anything wrong with a file
        raise ValueError(f"tokenizer: {path} is not a tokenizer.json ({error}); write or download it again") from error
    bos = next((name for name in BOS_NAMES if backend.token_to_id(name) is not None), None)
    if bos is None:
        raise ValueError(
            f"tokenizer: {path} has none of the BOS tokens {', '.join(BOS_NAMES)}; put a tokenizer_config.json with "
            "bos_token next to it and give the folder"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=bos, clean_up_tokenization_spaces=False
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides a document's ids: the tokenizer's definition and its BOS token."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    # Truncation and padding are left over from earlier calls and are not part of the tokenizer.
    definition = {key: value for key, value in definition.items() if key not in ("truncation", "padding")}
    content = json.dumps([definition, tokenizer.bos_token], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()
