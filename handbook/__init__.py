"""Makes the documentation site: pages that are generated from code, MkDocs' hooks, reading ease.

`python -m handbook` writes the generated pages. It is not part of any distribution.
"""
