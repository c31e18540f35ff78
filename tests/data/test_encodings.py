"""Encodings of text, found by marks and bytes."""

import pytest

from clara_jax.data.encodings import find_encoding, read_text
from clara_jax.errors import ClaraError

TEXTS = {
    "utf-8": "naïve café",
    "utf-8-sig": "naïve",
    "utf-16": "naïve",
    "utf-32": "naïve",
    "utf-16-le": "plain text without a mark",
    "utf-16-be": "plain text without a mark",
    "ascii": "plain",
    "cp1252": "He said “hello” – it’s a naïve café, où l’été…",
    "latin-1": "El niño comió piñas y señaló el camión.",
    "cp1250": "Zażółć gęślą jaźń. Łódź jest piękna, dzień dobry, proszę państwa.",
    "cp1254": "Şirketimizde eşitlik ilkesi doğrultusunda çalışanların hakları vardır.",
    "cp1251": "Привет, мир. Это длинный русский текст для проверки кодировки.",
    "shift_jis": "これは日本語の文書です。東京は大きな都市です。",
    "gb18030": "这是一个中文文档,用于检查编码。北京是中国的首都。",
    "euc_kr": "이것은 한국어 문서입니다. 인코딩을 확인합니다.",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_texts_are_read_as_they_were_written(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXTS[encoding].encode(encoding))
    assert read_text(path)[0] == TEXTS[encoding]


@pytest.fixture
def found(tmp_path):
    """A function that writes bytes to a file and finds their encoding."""

    def find(data: bytes) -> str:
        (tmp_path / "a").write_bytes(data)
        with open(tmp_path / "a", "rb") as file:
            return find_encoding(file, "a")

    return find


def test_letters_far_from_the_beginning_decide(found):
    text = b"plain text. " * 200_000
    assert found(text) == "utf-8"
    assert found(text + "é".encode()) == "utf-8"
    # A character that stands on both sides of a block.
    assert found(b"x" * ((1 << 20) - 1) + "é".encode()) == "utf-8"
    assert found(text + b"caf\xe9 " + text) == "cp1252"


def test_damaged_utf8_and_what_is_no_text_are_refused(found, tmp_path):
    damaged = "Déjà vu à l’été ".encode() * 3 + b"\xe9\n"
    with pytest.raises(ClaraError, match=r"a: is not UTF-8 \(byte \d+\); .*--enc"):
        found(damaged)
    with pytest.raises(ClaraError, match=r"a: is not text \(byte 0\); leave it out"):
        found(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 4)
    (tmp_path / "a.txt").write_bytes(damaged)
    assert read_text(tmp_path / "a.txt", "latin-1")[0].endswith("é\n")
    with pytest.raises(ClaraError, match=r"a.txt: is not ascii \(byte 1\)"):
        read_text(tmp_path / "a.txt", "ascii")
