"""Commands of the laboratory: `abmll meta-train`, `abmll evaluate`, `abmll tasks`.

`pyproject.toml` registers them under the entry point group `abmll.commands`. Their modules import
what is slow inside the functions, so that `abmll --help` answers at once.
"""
