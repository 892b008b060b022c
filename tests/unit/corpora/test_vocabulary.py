"""The vocabulary shows each token as it reads within a text, and its exact bytes."""

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from extraction_kit.corpora.vocabulary import byte_alphabet, write_vocabulary


def rows_of(tokenizer, path):
    write_vocabulary(path, tokenizer)
    return {row["token_id"]: row for row in pq.read_table(path).to_pylist()}


def test_byte_level_tokens_keep_their_space_and_exact_bytes(bpe, tmp_path):
    tokenizer = Tokenizer.from_file(bpe.path)
    rows = rows_of(tokenizer, tmp_path / "v.parquet")
    assert len(rows) == bpe.vocab_size
    the = rows[tokenizer.token_to_id("Ġthe")]
    assert (the["text"], the["bytes"]) == (" the", b" the")
    assert rows[bpe.bos_id]["text"] == "<s>"
    assert rows[bpe.bos_id]["bytes"] == b"<s>"
    ids = tokenizer.encode("naïve 猫!", add_special_tokens=False).ids
    assert b"".join(rows[i]["bytes"] for i in ids).decode() == "naïve 猫!"
    alone = [rows[i]["text"] for i in tokenizer.encode("猫", add_special_tokens=False).ids]
    assert "\ufffd" in alone[0]


def test_the_byte_alphabet_is_the_one_of_the_tokenizers_library():
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ")


def test_sentencepiece_tokens_keep_their_space_and_fallback_bytes(tmp_path):
    vocabulary = {"<unk>": 0, "▁the": 1, "cat": 2, "<0xE7>": 3, "▁a": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    rows = rows_of(tokenizer, tmp_path / "v.parquet")
    assert rows[1]["text"] == " the"
    assert rows[2]["text"] == "cat"
    assert (rows[3]["text"], rows[3]["bytes"]) == ("\ufffd", b"\xe7")


def test_pieces_of_words_are_shown_as_they_read(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "sat": 2, "##ing": 3},
                                           unk_token="[UNK]"))  # fmt: skip
    tokenizer.decoder = decoders.WordPiece()
    rows = rows_of(tokenizer, tmp_path / "v.parquet")
    assert (rows[2]["text"], rows[3]["text"]) == (" sat", "ing")


def test_a_vocabulary_is_written_once(bpe, tmp_path):
    path = tmp_path / "v.parquet"
    write_vocabulary(path, Tokenizer.from_file(bpe.path))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_vocabulary(path, Tokenizer.from_file(bpe.path))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


@pytest.mark.parametrize("gap", [3])
def test_ids_without_a_token_have_no_row(gap, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": gap}, unk_token="a"))
    assert sorted(rows_of(tokenizer, tmp_path / "v.parquet")) == [0, gap]
