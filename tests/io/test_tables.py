"""Reading tables that a person wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import InputError
from anomaly.io.tables import read_table, warn_of_unknown_values


def write(folder: Path, content: bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content)
    return path


def values(path: Path, separator: str = ",") -> list[dict[str, str]]:
    return [row.values for row in read_table(path, separator).rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_usual_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    assert values(write(tmp_path, "a,b\r\nZürich,1\r\n".encode(encoding))) == [{"a": "Zürich", "b": "1"}]


def test_a_table_that_is_not_utf8_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_table(write(tmp_path, "a,b\nZürich,1\n".encode("cp1252")), ",")
    assert "table.csv is not UTF-8; read as Windows-1252; save it as UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n\0\0,1\n", "NUL bytes.*save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "NUL bytes"),
        (b"\xff\xfea", "neither UTF-8 nor utf-16"),
        (b"a,b\n\x81,1\n", "neither UTF-8 nor cp1252"),
        (b"", "no header"),
        (b"\n \n", "no header"),
        (b"a,b,a\n1,2,3\n", "the column 'a' occurs twice"),
        (b"a,b\n1,2,3\n", "line 2: more values than columns"),
    ],
)
def test_what_is_no_table_is_an_error_that_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path, content), ",")


def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the table"):
        read_table(tmp_path / "gone.csv", ",")


def test_missing_last_values_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert values(write(tmp_path, b"a,b\n1\n")) == [{"a": "1", "b": ""}]
    assert "line 2: 1 values for 2 columns" in caplog.text


@pytest.mark.parametrize("content", [b"a;b\n1,5;2\n", b"sep=;\na;b\n1,5;2\n"])
def test_another_separator_is_recognised(tmp_path: Path, content: bytes) -> None:
    assert values(write(tmp_path, content)) == [{"a": "1,5", "b": "2"}]


def test_commas_inside_a_column_of_tabs_do_not_separate(tmp_path: Path) -> None:
    assert values(write(tmp_path, b"a, b\tc\n1\t2\n"), "\t") == [{"a, b": "1", "c": "2"}]


def test_empty_rows_and_trailing_empty_columns_are_left_out(tmp_path: Path) -> None:
    assert values(write(tmp_path, b"a,b,,\n\n1,2,,\n,,,\n")) == [{"a": "1", "b": "2"}]


def test_the_line_of_a_row_is_that_of_the_file(tmp_path: Path) -> None:
    assert [row.line for row in read_table(write(tmp_path, b"a\n\n1\n2\n"), ",").rows] == [3, 4]


def test_values_that_are_not_understood_are_one_warning_a_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, b"age,sex\n-1,M\n900,3\n")
    warn_of_unknown_values(str(path), read_table(path, ","))
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["sex '3'", "age '-1', '900'"]
