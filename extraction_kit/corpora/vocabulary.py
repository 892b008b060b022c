"""The texts of a tokenizer's tokens, as a table for people to read examples by."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from extraction_kit import atomic
from extraction_kit.lifecycle import digest_of

SCHEMA = pa.schema(
    [
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),
    ]
)


def write_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    """Write ``token_id, text, bytes`` for each token, unless `path` exists.

    ``text`` is what the token adds to a text in which something stands before it (`` the``
    with its space); bytes that are no UTF-8 by themselves show as the replacement
    character. ``bytes`` are exact for byte-level and byte-fallback tokenizers.
    """
    if path.exists():
        return
    pieces = {token_id: piece for piece, token_id in tokenizer.get_vocab().items()}
    ids = sorted(pieces)
    texts = token_texts(tokenizer, ids)
    added = set(tokenizer.get_added_tokens_decoder())
    alphabet = byte_alphabet() if _is_byte_level(tokenizer) else None
    exact = [
        text.encode() if token_id in added else _bytes_of(pieces[token_id], text, alphabet)
        for token_id, text in zip(ids, texts, strict=True)
    ]
    table = pa.table([pa.array(ids, pa.int32()), texts, exact], schema=SCHEMA)
    atomic.write_file(
        path, lambda target: pq.write_table(table, target, compression="zstd")
    )


def read_texts(path: Path) -> list[str]:
    """Return the text of each token id, "" for one that is no token.

    Raises
    ------
    OSError, pa.ArrowException
        The table is missing, or cannot be read.
    """
    table = pq.read_table(path, columns=["token_id", "text"])
    ids = table["token_id"].to_pylist()
    texts = [""] * (max(ids, default=-1) + 1)
    for token, text in zip(ids, table["text"].to_pylist(), strict=True):
        texts[token] = text
    return texts


def vocabulary_digest(path: Path) -> str:
    """Return a sha256 over what the table says, whichever pyarrow wrote it.

    Raises
    ------
    OSError, pa.ArrowException
        It is missing, or cannot be read.
    """
    table = pq.read_table(path, schema=SCHEMA)
    ids, texts, exact = (column.to_pylist() for column in table.columns)
    return digest_of([ids, texts, [each.hex() for each in exact]])


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Return what each token adds after another one (decoders trim the first)."""
    anchor = next(iter(tokenizer.encode("a", add_special_tokens=False).ids), ids[0])
    before = tokenizer.decode([anchor], skip_special_tokens=False)
    after = tokenizer.decode_batch(
        [[anchor, token_id] for token_id in ids], skip_special_tokens=False
    )
    alone = tokenizer.decode_batch(
        [[token_id] for token_id in ids], skip_special_tokens=False
    )
    return [
        both.removeprefix(before) if both.startswith(before) else single
        for both, single in zip(after, alone, strict=True)
    ]


def byte_alphabet() -> dict[str, int]:
    """Return the byte for each character of byte-level BPE (Radford et al. 2019).

    Printable bytes stand for themselves; the others, in order, for characters from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + number): byte for number, byte in enumerate(hidden)}


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return "ByteLevel" in repr(tokenizer.decoder)


def _bytes_of(piece: str, text: str, alphabet: dict[str, int] | None) -> bytes:
    if alphabet is not None and all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    if len(piece) == len("<0x00>") and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])  # SentencePiece's byte fallback
    return text.encode()
