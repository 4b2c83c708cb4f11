from benchmarks.bulk import Found, page


def test_the_page_compares_rows_a_second_and_says_whether_each_row_is_there_once() -> None:
    found = Found(1000, 500, 3, 10.0, 12.5, 40.0, 20.0, 1000, True, 321.4)
    text = page(found, "Command: `x`.")
    assert "| direct | 500 | 10.0 | 50.0 |" in text
    assert "| batch | 500 | 12.5 | 40.0 |" in text
    assert "| batch, 3 kills | 1,000 | 40.0 | 25.0 |" in text
    assert "0.80 times the throughput" in text
    assert "1,000 rows, each once and in order" in text
    assert "NOT each once" in page(Found(9, 9, 0, 1, 1, 1, 0, 8, False, 1), "")
