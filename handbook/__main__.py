"""`python -m handbook`: writes the pages that are made from code."""

from handbook.pages import write_pages

if __name__ == "__main__":
    write_pages()
